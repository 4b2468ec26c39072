"""DiT and SiT in the layout of the reference implementation, opened.

Such a directory holds a flat ``config.json`` and ``model.safetensors``, whose tensors have the
names and shapes of ours.
"""

from pathlib import Path
from typing import Any

from softvq.errors import UserError, unknown_key
from softvq.generator.config import TransformerConfig
from softvq.generator.transformer import DiT, SiT, TokenTransformer
from softvq.io import (
    build,
    check_weights,
    load_strictly,
    load_tensors,
    make_config,
    read_config,
    tensor_shapes,
)

# Our fields and theirs, for either network.
FIELDS = {
    "channels": "in_channels",
    "num_classes": "num_classes",
    "width": "hidden_size",
    "depth": "depth",
    "heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "label_dropout": "class_dropout_prob",
}
# Fields that are read in some other way than one to one.
SPECIAL = ("input_size", "patch_size", "vae_1d")
# Fields of one of the networks alone, which tell it from the other.
OWN: dict[type[TokenTransformer], dict[str, str]] = {
    SiT: {"qk_norm": "qk_norm"},
    DiT: {"learn_variance": "learn_sigma"},
}
# What a forward pass never reads: how attention is computed, alignment, and the model card.
UNUSED = (
    "decoder_hidden_size", "fused_attn", "license", "path_type", "repo_url", "tags", "use_cfg",
    "z_dims",
)  # fmt: skip


def recognises(config: dict[str, Any]) -> bool:
    """Whether the values of a config.json are those of a generator of the reference."""
    return "in_channels" in config and "hidden_size" in config and "model" not in config


def network(config: dict[str, Any]) -> type[TokenTransformer]:
    """Which of the networks a config of the reference describes."""
    return DiT if "learn_sigma" in config else SiT


def read_shape(directory: Path) -> tuple[type[TokenTransformer], TransformerConfig]:
    """The network that a directory in the reference's layout holds, and its config. UserError."""
    values, where = read_config(directory), str(directory)
    net = network(values)
    return net, make_config(net.config_class, translate(values, net, where), where)


def load_reference(directory: Path) -> TokenTransformer:
    """Open a directory in the reference's layout, strictly, in evaluation mode, on the CPU.

    Raises UserError for a missing or damaged file, an unknown or missing field, and missing, extra,
    misshaped or infinite tensors.
    """
    kind, config = read_shape(directory)
    weights, where = directory / "model.safetensors", str(directory)
    net = build(kind, config, sum(v.numel() for v in tensor_shapes(weights).values()), where)
    load_strictly(net, load_tensors(weights), where)
    check_weights(net, where)
    return net.eval()


def translate(
    config: dict[str, Any], net_class: type[TokenTransformer], where: str
) -> dict[str, Any]:
    """Our config's values from the reference's. See :func:`load_reference`."""
    fields = FIELDS | OWN[net_class]
    known = [*fields.values(), *SPECIAL, *UNUSED]
    for key in config:
        if key not in known:
            raise unknown_key(key, known, where)
    missing = [key for key in known if key not in config and key not in UNUSED]
    if missing:
        raise UserError(f"{where}: the config lacks {', '.join(missing)}")
    values = {ours: config[theirs] for ours, theirs in fields.items()}
    size = config["input_size"]
    if type(size) is not int:
        raise UserError(f"{where}: input_size must be a whole number, got {size!r}")
    if not config["vae_1d"]:
        return values | {"tokens": size * size, "patch": config["patch_size"]}
    if config["patch_size"] != 1:
        raise UserError(f"{where}: not supported: patch_size {config['patch_size']} on a sequence")
    return values | {"tokens": size}
