"""DINOv2 as the start of an encoder, against transformers' own network."""

import pytest
import torch
from contract import small
from torch.nn import functional as F

from softvq.errors import UserError
from softvq.interop.dinov2 import MEAN, STD, initialise_encoder, resize_kernel, timm_layout
from softvq.io import load_tensors, save_tensors
from softvq.tokenizer import Tokenizer, TokenizerConfig

transformers = pytest.importorskip("transformers")

KINDS = {
    "plain": (transformers.Dinov2Config, transformers.Dinov2Model),
    "registers": (transformers.Dinov2WithRegistersConfig, transformers.Dinov2WithRegistersModel),
}


def dinov2(folder, kind="plain", **changes):
    """A tiny network with no two weights alike, saved in the Hugging Face layout."""
    config_class, model_class = KINDS[kind]
    shape = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 56, "patch_size": 14, "attn_implementation": "eager",
    }  # fmt: skip
    torch.manual_seed(0)
    net = model_class(config_class(**(shape | changes))).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    net.save_pretrained(folder)
    return net


def fitting(**changes) -> TokenizerConfig:
    """A tokenizer whose encoder has the tiny network's shape."""
    shape = {
        "height": 56, "width": 56, "patch": 14, "encoder_heads": 4, "layer_scale": 1e-5,
        "stem": "patch", "class_token": True,
    }  # fmt: skip
    return small(**(shape | changes))


def features(encoder, images):
    """What the encoder makes of class token and patches where there are no latent tokens."""
    patches = encoder.patch_embed(images)
    x = encoder.grid(patches.flatten(2).transpose(1, 2), *patches.shape[-2:])
    for block in encoder.blocks:
        x = block(x)
    return encoder.norm(x)


def as_seen(images):
    """Our pixels in [-1, 1] as DINOv2 wants them."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return ((images + 1) / 2 - mean) / std


def as_timm(state, depth=2):
    """The Hugging Face layout written out in timm's, name by name."""
    named = {
        "cls_token": state["embeddings.cls_token"],
        "pos_embed": state["embeddings.position_embeddings"],
        "norm.weight": state["layernorm.weight"],
        "norm.bias": state["layernorm.bias"],
    }
    for end in ("weight", "bias"):
        named[f"patch_embed.proj.{end}"] = state[f"embeddings.patch_embeddings.projection.{end}"]
    for i in range(depth):
        theirs, ours = f"encoder.layer.{i}.", f"blocks.{i}."
        for end in ("weight", "bias"):
            heads = [
                state[f"{theirs}attention.attention.{x}.{end}"] for x in ("query", "key", "value")
            ]
            named[f"{ours}attn.qkv.{end}"] = torch.cat(heads)
            named[f"{ours}attn.proj.{end}"] = state[f"{theirs}attention.output.dense.{end}"]
            for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                named[f"{ours}{part}.{end}"] = state[f"{theirs}{part}.{end}"]
        for n in (1, 2):
            named[f"{ours}ls{n}.gamma"] = state[f"{theirs}layer_scale{n}.lambda1"]
    return named


def test_the_encoder_is_dinov2(tmp_path):
    theirs = dinov2(tmp_path)
    net = Tokenizer(fitting())
    before = {k: v.clone() for k, v in net.state_dict().items()}
    initialise_encoder(net, tmp_path)
    images = torch.rand(2, 3, 56, 56) * 2 - 1
    with torch.no_grad():
        expected = theirs(as_seen(images)).last_hidden_state
        torch.testing.assert_close(features(net.encoder, images), expected, rtol=1e-4, atol=1e-5)
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    own = {"encoder.latent_tokens", "encoder.latent_pos_embed"}
    assert changed == {k for k in before if k.startswith("encoder.")} - own


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [42, 70])
def test_positions_are_resized_as_dinov2_does(kind, side, tmp_path):
    theirs = dinov2(tmp_path, kind)
    net = Tokenizer(fitting(height=side, width=side))
    initialise_encoder(net, tmp_path)
    table = theirs.embeddings.interpolate_pos_encoding(
        torch.zeros(1, (side // 14) ** 2 + 1, 64), side, side
    )
    torch.testing.assert_close(net.encoder.grid.pos_embed, table)


def test_another_aspect_ratio(tmp_path):
    theirs = dinov2(tmp_path)
    net = Tokenizer(fitting(height=42, width=84))
    initialise_encoder(net, tmp_path)
    images = torch.rand(1, 3, 42, 84) * 2 - 1
    with torch.no_grad():
        expected = theirs(as_seen(images)).last_hidden_state
        torch.testing.assert_close(features(net.encoder, images), expected, rtol=1e-4, atol=1e-5)


def test_all_layouts_give_the_same_encoder(tmp_path):
    dinov2(tmp_path / "hf")
    state = load_tensors(tmp_path / "hf" / "model.safetensors")
    timm = as_timm(state)
    save_tensors(timm, tmp_path / "timm" / "model.safetensors")
    save_tensors(timm | {"mask_token": torch.ones(1, 64)}, tmp_path / "authors.safetensors")
    torch.save(timm, tmp_path / "authors.pth")
    assert timm_layout(state).keys() == timm.keys() | {"mask_token"}
    net = Tokenizer(fitting())
    initialise_encoder(net, tmp_path / "hf")
    expected = {k: v.clone() for k, v in net.state_dict().items()}
    for name in ("timm", "timm/model.safetensors", "authors.safetensors", "authors.pth"):
        for parameter in net.encoder.blocks.parameters():
            parameter.data.zero_()
        initialise_encoder(net, tmp_path / name)
        assert all(torch.equal(v, expected[k]) for k, v in net.state_dict().items())


def test_timm_keeps_the_class_position_of_models_with_registers_in_the_token(tmp_path):
    dinov2(tmp_path / "hf", "registers", image_size=56)
    state = load_tensors(tmp_path / "hf" / "model.safetensors")
    timm = as_timm(state)
    timm["reg_token"] = state["embeddings.register_tokens"]
    timm["cls_token"] = timm["cls_token"] + timm["pos_embed"][:, :1]
    timm["pos_embed"] = timm["pos_embed"][:, 1:]
    save_tensors(timm, tmp_path / "timm.safetensors")
    images = torch.rand(2, 3, 56, 56) * 2 - 1
    made = []
    for name in ("hf", "timm.safetensors"):
        net = Tokenizer(fitting())
        initialise_encoder(net, tmp_path / name)
        made.append(features(net.encoder, images))
    torch.testing.assert_close(*made)


# ---- the patch kernel ----


def enlarge(patches: torch.Tensor, size: int) -> torch.Tensor:
    return F.interpolate(patches, (size, size), mode="bicubic", antialias=True)


def test_an_enlarged_patch_gives_the_same_response():
    kernel, patches = torch.randn(8, 3, 14, 14), torch.randn(5, 3, 14, 14)
    response = F.conv2d(patches, kernel)
    resized = resize_kernel(kernel, 16)
    assert resized.shape == (8, 3, 16, 16)
    torch.testing.assert_close(
        F.conv2d(enlarge(patches, 16), resized), response, rtol=1e-4, atol=1e-4
    )
    # Resizing the kernel as a picture does not do it.
    naive = F.conv2d(enlarge(patches, 16), enlarge(kernel, 16))
    assert (naive - response).abs().mean() > 0.1 * response.abs().mean()


@pytest.mark.parametrize("size", [8, 14, 16, 28])
def test_a_plain_colour_keeps_its_response(size):
    kernel = torch.randn(8, 3, 14, 14)
    resized = resize_kernel(kernel, size)
    if size >= 14:
        torch.testing.assert_close(resized.sum((2, 3)), kernel.sum((2, 3)), rtol=1e-4, atol=1e-4)
    if size == 14:
        assert resized is kernel
    assert resized.dtype == torch.float32 and torch.isfinite(resized).all()


def test_patches_of_16_see_what_patches_of_14_saw(tmp_path):
    theirs = dinov2(tmp_path)
    net = Tokenizer(fitting(height=64, width=64, patch=16))
    initialise_encoder(net, tmp_path)
    small_images = torch.rand(2, 3, 56, 56) * 2 - 1
    patches = small_images.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5)
    large = enlarge(patches.flatten(0, 2), 16).unflatten(0, (2, 4, 4))
    images = large.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
    with torch.no_grad():
        expected = theirs(as_seen(small_images)).last_hidden_state
        torch.testing.assert_close(features(net.encoder, images), expected, rtol=1e-3, atol=1e-4)


# ---- what does not fit ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_token": False}, "do not fit an encoder with no class_token$"),
        ({"stem": "conv", "layer_scale": None}, "with stem conv, no layer_scale$"),
        ({"encoder_depth": 3}, "has width 64 depth 2 heads 4, the encoder width 64 depth 3"),
        ({"encoder_heads": 2}, "heads 4, the encoder width 64 depth 2 heads 2"),
    ],
)
def test_another_encoder_is_refused(changes, message, tmp_path):
    dinov2(tmp_path)
    with pytest.raises(UserError, match=message):
        initialise_encoder(Tokenizer(fitting(**changes)), tmp_path)


def test_swiglu_is_refused(tmp_path):
    dinov2(tmp_path / "giant", use_swiglu_ffn=True)
    dinov2(tmp_path / "hf")
    packed = as_timm(load_tensors(tmp_path / "hf" / "model.safetensors"))
    packed["blocks.0.mlp.fc1.weight"] = torch.zeros(512, 64)
    save_tensors(packed, tmp_path / "packed.safetensors")
    authors = {k.replace("mlp.fc1", "mlp.w12"): v for k, v in packed.items()}
    save_tensors(authors, tmp_path / "authors.safetensors")
    for name in ("giant", "packed.safetensors", "authors.safetensors"):
        with pytest.raises(UserError, match="has SwiGLU MLPs"):
            initialise_encoder(Tokenizer(fitting()), tmp_path / name)


def test_every_fault_of_the_tensors_is_listed_and_nothing_changes(tmp_path):
    dinov2(tmp_path)
    state = load_tensors(tmp_path / "model.safetensors")
    del state["encoder.layer.1.attention.attention.key.weight"]
    del state["layernorm.bias"]
    save_tensors(state | {"head.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    net = Tokenizer(fitting())
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(UserError) as caught:
        initialise_encoder(net, tmp_path)
    for fault in ("missing norm.bias", "extra head.weight", "qkv.weight is [128, 64], expected"):
        assert fault in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_other_files_say_what_is_wrong(tmp_path):
    net = Tokenizer(fitting())
    with pytest.raises(UserError, match="no such file"):
        initialise_encoder(net, tmp_path)
    save_tensors({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="no DINOv2 in a known layout: missing cls_token"):
        initialise_encoder(net, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        initialise_encoder(net, tmp_path)


def test_the_colours_are_those_of_its_image_processor():
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    assert (tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD)) == (MEAN, STD)
