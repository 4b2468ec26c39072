"""DiT and SiT in the layout of the reference implementation, opened.

Such a directory holds a flat ``config.json`` and ``model.safetensors``, whose tensors have the
names and shapes of ours.
"""

from pathlib import Path
from typing import Any, TypeVar

from softvq.errors import UserError
from softvq.generator.transformer import DiT, SiT, TokenTransformer
from softvq.io import load_strictly, load_tensors, read_config, unknown_key

Net = TypeVar("Net", bound=TokenTransformer)

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


def load_reference(net_class: type[Net], directory: str | Path) -> Net:
    """Open a directory in the reference's layout, strictly, in evaluation mode, on the CPU.

    Raises UserError for a missing or damaged file, an unknown or missing field, the other kind of
    network, and missing, extra or misshaped tensors.
    """
    directory = Path(directory)
    values = read_config(directory)
    if network(values) is not net_class:
        raise UserError(
            f"{directory}: holds a {network(values).__name__}, not a {net_class.__name__}"
        )
    net = net_class(net_class.config_class(**translate(values, net_class, str(directory))))
    load_strictly(net, load_tensors(directory / "model.safetensors"), str(directory))
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
    if not config["vae_1d"]:
        return values | {"tokens": size * size, "patch": config["patch_size"]}
    if config["patch_size"] != 1:
        raise UserError(f"{where}: not supported: patch_size {config['patch_size']} on a sequence")
    return values | {"tokens": size}
