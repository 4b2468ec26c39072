"""The convolutional networks: the shared contract, and Stable Diffusion's autoencoder by number."""

import pytest
import torch
from contract import GridContract, photos, small

from softvq.errors import UserError
from softvq.evaluate.cost import tokenizer_cost
from softvq.recipe import TokenizerRecipe, load_recipe
from softvq.tokenizer import BOTTLENECKS, Tokenizer, TokenizerConfig
from softvq.tokenizer.cnn import as_grid, as_tokens, level_widths, norm


def grid(**changes) -> TokenizerConfig:
    """A convolutional tokenizer of 32 x 32 pixels and 4 x 4 tokens x 16 channels."""
    depths = {"encoder_width": 16, "encoder_depth": 1, "decoder_width": 16, "decoder_depth": 1}
    return small(**({"network": "cnn", "tokens": 16, "bottleneck": "kl"} | depths | changes))


class TestKL(GridContract):
    config = grid(kl_weight=1e-4)

    def test_loading_is_strict(self, tokenizer, tmp_path):
        tokenizer.save_pretrained(tmp_path)
        config = tmp_path / "config.json"
        text = config.read_text()
        config.write_text(text.replace('"decoder_depth": 1', '"decoder_depth": 2'))
        with pytest.raises(UserError, match=r"weights do not fit the config: missing decoder\."):
            Tokenizer.from_pretrained(tmp_path)


class TestSoftVQ(TestKL):
    config = grid(bottleneck="softvq", codebooks=2, gain=True)


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
@pytest.mark.parametrize("patch", [4, 8, 16, 32])
def test_any_bottleneck_at_any_factor(bottleneck, patch):
    cells = (32 // patch) * (64 // patch)
    config = grid(bottleneck=bottleneck, patch=patch, width=64, tokens=cells)
    reconstruction, tokens = Tokenizer(config)(photos(2, 32, 64))
    assert tokens.latents.shape == (2, cells, 16)
    assert reconstruction.shape == (2, 3, 32, 64)


def test_tokens_are_row_major():
    cells = torch.randn(2, 3, 4, 5)
    tokens = as_tokens(cells)
    assert torch.equal(tokens[:, 2 * 5 + 3], cells[:, :, 2, 3])
    assert torch.equal(as_grid(tokens, 4, 5), cells)


# Stable Diffusion's autoencoder (Rombach et al. 2022). Operations: the table of shared facts;
# parameters: the state dict of the published model, here as diffusers' class builds it.
def stable_diffusion(size: int) -> TokenizerConfig:
    return TokenizerConfig(
        network="cnn", height=size, width=size, patch=8, tokens=(size // 8) ** 2, channels=4,
        bottleneck="kl", encoder_width=128, encoder_depth=2, decoder_width=128, decoder_depth=3,
    )  # fmt: skip


@pytest.mark.parametrize(("size", "gflops"), [(256, 622), (512, 2515)])
def test_stable_diffusion_by_number(size, gflops):
    cost = tokenizer_cost(stable_diffusion(size))
    assert cost["encoder"].parameters == 34_163_664
    assert cost["decoder"].parameters == 49_490_199
    assert round(cost["decoder"].flops / 1e9) == gflops
    assert {norm(width).num_groups for width in level_widths(8, 128)} == {32}


def ours_from_diffusers(vae) -> dict[str, torch.Tensor]:
    """Weights of an AutoencoderKL in our order, which is the order of computation."""

    def resnet(block) -> list:
        parts = [block.norm1, block.conv1, block.norm2, block.conv2]
        return parts + ([block.conv_shortcut] if block.conv_shortcut is not None else [])

    def attention(block) -> list:
        qkv = torch.nn.Linear(block.to_q.in_features, 3 * block.to_q.in_features)
        parts = [block.to_q, block.to_k, block.to_v]
        qkv.load_state_dict(
            {name: torch.cat([getattr(p, name) for p in parts]) for name in ("weight", "bias")}
        )
        return [block.group_norm, qkv, block.to_out[0]]

    def middle(block) -> list:
        first, last = block.resnets
        return [*resnet(first), *attention(block.attentions[0]), *resnet(last)]

    encoder, decoder = [vae.encoder.conv_in], [vae.decoder.conv_in]
    for block in vae.encoder.down_blocks:
        encoder += [part for one in block.resnets for part in resnet(one)]
        encoder += [one.conv for one in block.downsamplers or ()]
    encoder += [*middle(vae.encoder.mid_block), vae.encoder.conv_norm_out, vae.encoder.conv_out]
    decoder += middle(vae.decoder.mid_block)
    for block in vae.decoder.up_blocks:
        decoder += [part for one in block.resnets for part in resnet(one)]
        decoder += [one.conv for one in block.upsamplers or ()]
    decoder += [vae.decoder.conv_norm_out, vae.decoder.conv_out]
    between = [vae.quant_conv, vae.post_quant_conv]
    return [*encoder, *between, *decoder]


def test_same_function_as_diffusers():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64), layers_per_block=1, latent_channels=4, norm_num_groups=16,
    )  # fmt: skip
    for module in vae.modules():
        if isinstance(module, torch.nn.GroupNorm):  # so narrow a network has fewer groups here
            module.num_groups = norm(module.num_channels).num_groups
    with torch.no_grad():
        for parameter in vae.parameters():  # norms start as 1 and 0: tell them apart
            parameter.add_(0.02 * torch.randn_like(parameter))
    depths = {"encoder_depth": 1, "decoder_depth": 2}
    size = {"height": 16, "width": 24, "patch": 4, "tokens": 24, "channels": 4}
    ours = Tokenizer(grid(**size, **depths))
    theirs = [p for part in ours_from_diffusers(vae) for p in (part.weight, part.bias)]
    mine = list(ours.parameters())
    assert len(theirs) == len(mine)
    with torch.no_grad():
        for parameter, value in zip(mine, theirs, strict=True):
            parameter.copy_(value.view_as(parameter))
        images = photos(2, 16, 24)
        tokens = ours.eval().encode(images)
        mean = vae.eval().encode(images).latent_dist.mean
        torch.testing.assert_close(tokens.latents, as_tokens(mean), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            ours.decode(tokens.latents), vae.decode(mean).sample, atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("network", ["vit", "cnn"])
def test_last_layer_makes_the_pixels(network):
    tokenizer = Tokenizer(grid(network=network))
    with torch.no_grad():
        tokenizer.last_layer.zero_()
        pixels = tokenizer.reconstruct(photos())
    unfolded = pixels.unfold(2, 8, 8).unfold(3, 8, 8)  # without weights only a bias is left
    assert torch.equal(unfolded, unfolded[:1, :, :1, :1].expand_as(unfolded))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 8}, "tokens must be 16, got 8"),
        ({"patch": 2, "tokens": 256}, "patch of 4, 8, 16, 32, not 2"),
        ({"network": "cmm"}, "network 'cmm' is none of vit, cnn"),
    ],
)
def test_bad_configs_say_what_is_wrong(changes, message):
    with pytest.raises(UserError, match=message):
        Tokenizer(grid(**changes))


@pytest.mark.parametrize("name", ["cnn-f8", "cnn-f16"])
def test_recipes_compare_with_the_small_one(name):
    def size(recipe: str) -> tuple[int, int]:
        config = load_recipe(TokenizerRecipe, recipe, []).model
        cost = tokenizer_cost(config)
        return config.tokens * config.channels, sum(part.parameters for part in cost.values())

    floats, parameters = size(name)
    assert floats == size("small")[0] == 512
    assert parameters == pytest.approx(size("small")[1], rel=0.06)
