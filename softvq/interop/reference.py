"""Tokenizers in the layout of the reference implementation, opened and written.

Such a directory holds a flat ``config.json`` of 45 fields and ``model.safetensors``. The config
says neither which bottleneck it is nor how wide or deep the networks are: the tensors do. What
neither says, the number of attention heads, follows from the names of the timm models.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softvq.errors import UserError, unknown_key
from softvq.io import (
    build,
    check_fit,
    check_weights,
    load_tensors,
    make_config,
    read_config,
    save_tensors,
    write_atomically,
)
from softvq.tokenizer.config import TokenizerConfig
from softvq.tokenizer.model import Tokenizer

# Our fields and theirs.
FIELDS = {
    "height": "image_size",
    "width": "image_size",
    "patch": "enc_patch_size",
    "tokens": "num_latent_tokens",
    "channels": "codebook_embed_dim",
    "codebook_size": "codebook_size",
    "codebooks": "num_codebooks",
    "tau": "tau",
    "l2_norm": "codebook_l2_norm",
    "entropy_weight": "entropy_loss_ratio",
    "commitment": "commit_loss_beta",
    "kl_weight": "kl_loss_weight",
    "rope_theta": "rope_theta",
}
# Fields that are read in some other way than one to one.
SPECIAL = {
    "base_image_size", "dec_patch_size", "encoder_model", "decoder_model", "vq_mean", "vq_std",
    "use_rope", "rope_mixed",
}  # fmt: skip
# What our networks always are. Another value describes a network that we do not have.
FIXED: dict[str, Any] = {
    "enc_type": "vit",
    "dec_type": "vit",
    "to_pixel": "linear",
    "dec_cls_token": True,
    "use_ape": True,
}
# What a forward pass never reads: training, alignment, other networks. Written as given here.
UNUSED: dict[str, Any] = {
    "codebook_show_usage": True,
    "vq_loss_ratio": 1.0,
    "encoder_ch_mult": [1, 1, 2, 2, 4],
    "decoder_ch_mult": [1, 1, 2, 2, 4],
    "z_channels": 256,
    "dropout_p": 0.0,
    "enc_tuning_method": "full",
    "dec_tuning_method": "full",
    "enc_pretrained": False,
    "dec_pretrained": False,
    "enc_drop_path_rate": 0.0,
    "dec_drop_path_rate": 0.0,
    "enc_token_drop": 0.0,
    "enc_token_drop_max": 0.6,
    "repa": False,
    "repa_patch_size": 16,
    "repa_model": "vit_large_patch14_dinov2.lvd142m",
    "repa_proj_dim": 1024,
    "repa_loss_weight": 0.1,
    "repa_align": "repeat",
}
KNOWN = [*dict.fromkeys(FIELDS.values()), *sorted(SPECIAL), *FIXED, *UNUSED]

HEADS = {"small": 6, "base": 12, "large": 16}  # by the size in a timm name
LAYER_SCALE = 1e-5  # where DINOv2 starts; it plays no part once weights are loaded
USED = 65536  # length of the reference's record of used codewords

RENAMED = {
    r"^(encoder|decoder)\.grid\.": r"\1.model.",
    r"^(encoder|decoder)\.rotary\.": r"\1.",
    r"^(encoder|decoder)\.(patch_embed|blocks|norm)\.": r"\1.model.\2.",
    r"^decoder\.to_pixels\.": "decoder.to_pixel.model.",
    r"^to_latent\.": "quant_conv.",
    r"^from_latent\.": "post_quant_conv.",
    r"^bottleneck\.": "quantize.",
}
# Never read by a forward pass: the decoder's patch embedding and the record of used codewords.
DEAD = ("decoder.model.patch_embed.", "quantize.codebook_used")
# With rotary positions, the decoder's learned ones neither; freqs_t_* number columns and rows.
DEAD_WITH_ROPE = ("decoder.model.pos_embed", "encoder.freqs_t_", "decoder.freqs_t_")
# Our tensors whose rows are the pixels of a patch: colour first here, colour last there.
PIXELS = ("decoder.to_pixels.weight", "decoder.to_pixels.bias")
ALIGNMENT = ("repa_model.", "projection.")  # the alignment teacher and the head that meets it


def recognises(config: dict[str, Any]) -> bool:
    """Whether the values of a config.json are those of a tokenizer of the reference."""
    return "codebook_embed_dim" in config and "model" not in config


def load_reference(directory: str | Path, num_heads: int | None = None) -> Tokenizer:
    """Open a directory in the reference's layout; nothing is downloaded. See from_reference."""
    directory = Path(directory)
    state = load_tensors(directory / "model.safetensors")
    return from_reference(read_config(directory), state, num_heads, str(directory))


def from_reference(
    config: dict[str, Any],
    state: dict[str, Tensor],
    num_heads: int | None = None,
    where: str = "reference checkpoint",
) -> Tokenizer:
    """A tokenizer from the reference's config and state dict, in evaluation mode.

    ``num_heads`` of both networks; None reads them off the names of the timm models. The alignment
    teacher and dead tensors are dropped. ``where`` names the source in errors.

    Raises UserError for an unknown or missing field, a network we do not have, and missing, extra
    or misshaped tensors (all are listed, by the reference's names).
    """
    made = tokenizer_config(config, state, num_heads, where)
    dropped: tuple[str, ...] = DEAD
    dropped += ALIGNMENT if config.get("repa") else ()
    dropped += DEAD_WITH_ROPE if config["use_rope"] else ()
    state = {key: value for key, value in state.items() if not key.startswith(dropped)}
    tokenizer = build(Tokenizer, made, sum(v.numel() for v in state.values()), where)
    ours = named_tensors(tokenizer)
    check_fit({reference_key(key): value for key, value in ours.items()}, state, where)
    loaded = {key: state[reference_key(key)] for key in ours}
    for key in PIXELS:
        loaded[key] = colour_first(loaded[key])
    for buffer, field in {"latent_mean": "vq_mean", "latent_std": "vq_std"}.items():
        loaded[buffer] = torch.full_like(getattr(tokenizer, buffer), config[field])
    tokenizer.load_state_dict(loaded)
    check_weights(tokenizer, where)
    return tokenizer.eval()


def export_reference(tokenizer: Tokenizer, directory: str | Path) -> None:
    """Write a tokenizer in the reference's layout, for :func:`load_reference` and the reference.

    Dead tensors are written as zeros. The reference keeps one mean and one standard deviation for
    all channels: ours are pooled. Networks of a number of heads that no timm model has are opened
    again with ``num_heads``, and not by the reference, which cannot run axial positions either.

    Raises UserError, listing what the reference cannot express.
    """
    config, state = reference_config(tokenizer), reference_state(tokenizer)
    save_tensors(state, Path(directory) / "model.safetensors")
    write_atomically(Path(directory) / "config.json", json.dumps(config, indent=2) + "\n")


def reference_key(key: str) -> str:
    """The reference's name of one of our tensors."""
    for pattern, replacement in RENAMED.items():
        key = re.sub(pattern, replacement, key)
    return key


def colour_first(rows: Tensor) -> Tensor:
    """Rows of a patch's pixels, [patch * patch * 3, ...] -> [3 * patch * patch, ...]."""
    return rows.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)


def colour_last(rows: Tensor) -> Tensor:
    """The inverse of :func:`colour_first`."""
    return rows.unflatten(0, (3, -1)).transpose(0, 1).flatten(0, 1)


def named_tensors(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """Our tensors by name, without those of ours alone.

    Latent mean and std are in the reference's config; moving averages only train a codebook.
    """
    ours = ("latent_mean", "latent_std", "bottleneck.ema_")
    return {k: v for k, v in tokenizer.state_dict().items() if not k.startswith(ours)}


def tokenizer_config(
    config: dict[str, Any], state: dict[str, Tensor], num_heads: int | None, where: str
) -> TokenizerConfig:
    """Our config from the reference's and the shapes of its tensors. See from_reference."""
    for key in config:
        if key not in KNOWN:
            raise unknown_key(key, KNOWN, where)
    missing = [key for key in KNOWN if key not in config and key not in UNUSED]
    if missing:
        raise UserError(f"{where}: the config lacks {', '.join(missing)}")
    foreign = [f"{key} {config[key]!r}" for key, value in FIXED.items() if config[key] != value]
    if config["dec_patch_size"] != config["enc_patch_size"]:
        foreign.append(f"dec_patch_size {config['dec_patch_size']} other than the encoder's")
    if foreign:
        raise UserError(f"{where}: not supported: {', '.join(foreign)}")
    for key in (*FIELDS.values(), "vq_mean", "vq_std"):
        if not isinstance(config[key], int | float):
            raise UserError(f"{where}: {key} must be a number, got {config[key]!r}")
    values = {ours: config[theirs] for ours, theirs in FIELDS.items()}
    for part in ("encoder", "decoder"):
        width, depth = width_and_depth(state, part, where)
        heads = num_heads or heads_of(config[f"{part}_model"], where)
        if width % heads:
            raise UserError(
                f"{where}: {part} width {width} is not divisible by {heads} heads; "
                "give num_heads (--num-heads on the command line)"
            )
        values |= {f"{part}_width": width, f"{part}_depth": depth, f"{part}_heads": heads}
    values |= {
        "bottleneck": bottleneck_of(config, state),
        "rope": ("mixed" if config["rope_mixed"] else "axial") if config["use_rope"] else "none",
        "layer_scale": LAYER_SCALE,
        "entropy_pooled": True,
    }
    return make_config(TokenizerConfig, values, where)


def width_and_depth(state: dict[str, Tensor], part: str, where: str) -> tuple[int, int]:
    """Width and number of blocks of the ``encoder`` or ``decoder``, from its tensors."""
    start = f"{part}.model.blocks."
    depth = len({key[len(start) :].split(".")[0] for key in state if key.startswith(start)})
    # The commonest, so that one misshaped tensor is reported as such and not as all the others.
    widths = Counter(v.numel() for k, v in state.items() if k.startswith(start) and ".norm" in k)
    if not widths:
        raise UserError(f"{where}: weights do not fit the config: missing {start}*")
    return widths.most_common(1)[0][0], depth


def heads_of(timm_name: str, where: str) -> int:
    """Attention heads of a timm model by its name. Raises UserError if the name is unknown."""
    size = str(timm_name).removeprefix("vit_").split("_")[0]
    if size not in HEADS:
        raise UserError(
            f"{where}: the heads of '{timm_name}' are not known; "
            "give num_heads (--num-heads on the command line)"
        )
    return HEADS[size]


def bottleneck_of(config: dict[str, Any], state: dict[str, Tensor]) -> str:
    """The bottleneck that a checkpoint's tensors belong to."""
    if "quantize.embedding.weight" in state:
        return "vq"
    if any(key.startswith("quantize.") for key in state):
        return "softvq"
    twice = 2 * config["codebook_embed_dim"]
    return "kl" if [*state.get("quant_conv.bias", torch.empty(0)).shape] == [twice] else "ae"


def reference_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The reference's 45 fields for a tokenizer. See export_reference."""
    config = tokenizer.config
    inexpressible = {
        f"network {config.network}": config.network != "vit",
        "height other than width": config.height != config.width,
        f"stem {config.stem}": config.stem != "patch",
        "no class_token": not config.class_token,
        "no layer_scale": not config.layer_scale,
        "gain": config.gain and config.bottleneck == "softvq",
        "bottleneck gmm": config.bottleneck == "gmm",
        f"assignment {config.assignment}": config.bottleneck == "softvq"
        and config.assignment != "cosine",
        "codebooks over channels": config.bottleneck == "softvq"
        and config.codebook_axis == "channels"
        and config.codebooks > 1,
        f"{config.levels} levels": config.bottleneck == "softvq" and config.levels > 1,
        "vq_update simvq": config.bottleneck == "vq" and config.vq_update == "simvq",
    }
    if any(inexpressible.values()):
        faults = ", ".join(fault for fault, holds in inexpressible.items() if holds)
        raise UserError(
            "only a tokenizer built as the published ones (the recipes softvq-*) can be exported; "
            f"the reference's layout cannot express this tokenizer: {faults}"
        )
    mean, std = tokenizer.latent_mean.double(), tokenizer.latent_std.double()
    pooled = (std.square().mean() + mean.var(correction=0)).sqrt()
    special = {
        "base_image_size": config.height,
        "dec_patch_size": config.patch,
        "encoder_model": timm_name(config.encoder_heads),
        "decoder_model": timm_name(config.decoder_heads),
        "vq_mean": mean.mean().item(),
        "vq_std": pooled.item(),
        "use_rope": config.rope != "none",
        "rope_mixed": config.rope == "mixed",
    }
    fields = {theirs: getattr(config, ours) for ours, theirs in FIELDS.items()}
    return dict(sorted((fields | special | FIXED | UNUSED).items()))


def timm_name(heads: int) -> str:
    """The DINOv2 model of that many heads; the small one where there is none."""
    sizes = {heads: size for size, heads in HEADS.items()}
    return f"vit_{sizes.get(heads, 'small')}_patch14_dinov2.lvd142m"


def reference_state(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """A tokenizer's tensors under the reference's names, dead ones included as zeros."""
    config = tokenizer.config
    ours = named_tensors(tokenizer)
    for key in PIXELS:
        ours[key] = colour_last(ours[key])
    state = {reference_key(key): value for key, value in ours.items()}
    bias = state["decoder.model.norm.bias"]
    dead = {"decoder.model.patch_embed.proj.bias": list(bias.shape)}
    dead["decoder.model.patch_embed.proj.weight"] = [*bias.shape, 3, config.patch, config.patch]
    if config.bottleneck in ("softvq", "vq"):
        one_each = [config.codebooks] if config.bottleneck == "softvq" else []
        dead["quantize.codebook_used"] = [*one_each, USED]
    rows, columns = config.grid
    if config.rope != "none":
        dead["decoder.model.pos_embed"] = [1, rows * columns + 1, *bias.shape]
    if config.rope == "mixed":
        x, y = (torch.arange(n, device=bias.device).to(bias) for n in (columns, rows))
        for part in ("encoder", "decoder"):
            state[f"{part}.freqs_t_x"] = x.repeat(rows)
            state[f"{part}.freqs_t_y"] = y.repeat_interleave(columns)
    return state | {key: bias.new_zeros(shape) for key, shape in dead.items()}
