"""Open DINOv2 weights (Oquab et al. 2023) as the start of a tokenizer's encoder.

Our blocks are DINOv2's, so its weights fit as they are. Three things are adapted, all exactly or as
DINOv2 itself does: its images had ImageNet's mean and standard deviation taken out, ours lie in
[-1, 1]; its patches have 14 pixels; its positions are a grid of 37 x 37. Register tokens are left
out: the latent tokens stand in their place.
"""

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from softvq.errors import UserError
from softvq.io import check_fit, load_weights, read_config
from softvq.tokenizer.model import Tokenizer
from softvq.tokenizer.vit import resize_positions
from softvq.tokenizer.vit_names import MEAN, OURS, STD, timm_layout

REGISTERS = ("register_tokens", "reg_token")
UNUSED = ("mask_token", *REGISTERS)  # the mask served in pre-training alone


def initialise_encoder(tokenizer: Tokenizer, path: str | Path) -> None:
    """Start the encoder of a tokenizer from DINOv2's small, base or large weights, in place.

    ``path``: a directory with model.safetensors, or a .safetensors or .pth file of weights, in the
    Hugging Face layout or that of timm and the authors. Latent tokens, their positions and rotary
    frequencies, which DINOv2 does not have, stay as they are; so does the rest of the tokenizer.

    Raises UserError if the file is missing or damaged, the encoder is not built as DINOv2's
    (stem patch, class token, LayerScale), or width, depth, heads or any tensor differ.
    """
    config = tokenizer.config
    unlike = {
        f"network {config.network}": config.network != "vit",
        f"stem {config.stem}": config.stem != "patch",
        "no class_token": not config.class_token,
        "no layer_scale": not config.layer_scale,
    }
    if any(unlike.values()):
        faults = ", ".join(fault for fault, holds in unlike.items() if holds)
        raise UserError(f"DINOv2's weights do not fit an encoder with {faults}")
    path = Path(path)
    state = timm_layout(load_weights(path / "model.safetensors" if path.is_dir() else path))
    check_shape(tokenizer, state, path)
    registers = any(key in state for key in REGISTERS)
    state = {OURS.get(key, key): v.float() for key, v in state.items() if key not in UNUSED}
    state["grid.pos_embed"] = positions(state["grid.pos_embed"], config.grid, registers)
    kernel = resize_kernel(state["patch_embed.proj.weight"], config.patch)
    kernel, bias = for_our_pixels(kernel, state["patch_embed.proj.bias"])
    state |= {"patch_embed.proj.weight": kernel, "patch_embed.proj.bias": bias}
    own = ("latent_tokens", "latent_pos_embed", "rotary.freqs")
    expected = {k: v for k, v in tokenizer.encoder.state_dict().items() if k not in own}
    check_fit(expected, state, str(path))
    tokenizer.encoder.load_state_dict(state, strict=False)


def check_shape(tokenizer: Tokenizer, state: dict[str, Tensor], path: Path) -> None:
    """Raises UserError where width, depth, heads or the kind of network are others."""
    hidden = state.get("blocks.0.mlp.fc1.weight"), state.get("blocks.0.mlp.fc2.weight")
    packed = hidden[0] is not None and hidden[1] is not None and len(hidden[0]) != len(hidden[1].T)
    if packed or any(key.startswith(("blocks.0.mlp.w1", "blocks.0.mlp.weights")) for key in state):
        raise UserError(f"{path}: has SwiGLU MLPs (the giant DINOv2); take small, base or large")
    needed = ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
    missing = [key for key in needed if key not in state]
    if missing:
        raise UserError(f"{path}: no DINOv2 in a known layout: missing {', '.join(missing)}")
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    theirs = {"width": state["cls_token"].shape[-1], "depth": depth}
    if (path / "config.json").is_file():  # the Hugging Face layout says the heads; tensors cannot
        heads = read_config(path).get("num_attention_heads")
        theirs |= {"heads": heads} if heads else {}
    config = tokenizer.config
    ours = {name: getattr(config, f"encoder_{name}") for name in theirs}
    if ours != theirs:
        said = [" ".join(f"{k} {v}" for k, v in each.items()) for each in (theirs, ours)]
        raise UserError(f"{path}: has {said[0]}, the encoder {said[1]}")


def positions(table: Tensor, grid: tuple[int, int], registers: bool) -> Tensor:
    """A square table of positions [1, (1 +) n * n, D] -> [1, 1 + rows * columns, D].

    Resized as DINOv2 does: bicubic, and with antialiasing in the models with registers. timm's
    models with registers have no position for the class token: it is in that token already.
    """
    side = math.isqrt(table.shape[1])
    if side * side == table.shape[1]:
        table = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
    elif (side := math.isqrt(table.shape[1] - 1)) ** 2 != table.shape[1] - 1:
        raise UserError(f"a position table of {table.shape[1]} rows is no square grid")
    return resize_positions(table, (side, side), grid, antialias=registers)


def resize_kernel(kernel: Tensor, patch: int) -> Tensor:
    """A patch embedding [D, 3, p, p] for patches of another size (PI-resize, Beyer et al. 2023).

    If B enlarges a patch, then the new kernel (B^T)^+ w meets the enlarged patch B x exactly as w
    meets x. Resizing w as if it were a picture would not keep a single response. B is bicubic with
    antialiasing, as in timm; where patches shrink, the responses are nearest in least squares.
    """
    old = kernel.shape[-1]
    if old == patch:
        return kernel
    pixels = torch.eye(old * old, dtype=torch.float64, device=kernel.device)
    enlarged = F.interpolate(
        pixels.view(-1, 1, old, old), (patch, patch), mode="bicubic", antialias=True
    )
    inverse = torch.linalg.pinv(enlarged.flatten(1))  # of B^T, [p^2, patch^2]
    resized = kernel.double().flatten(2) @ inverse.T
    return resized.unflatten(2, (patch, patch)).to(kernel.dtype)


def for_our_pixels(kernel: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weights that read x in [-1, 1] as DINOv2's read ((x + 1) / 2 - mean) / std: no change."""
    mean, std = (torch.tensor(values).to(kernel).view(3, 1, 1) for values in (MEAN, STD))
    return kernel * (0.5 / std), bias + (kernel * ((0.5 - mean) / std)).sum((1, 2, 3))
