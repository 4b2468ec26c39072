"""What tells one model from another: a hash of its configuration and its weights."""

import dataclasses
import hashlib
import json
from typing import Any

import torch


def digest(model: Any, without: tuple[str, ...] = ()) -> str:
    """A hash of a model's configuration and weights, but those whose names begin with ``without``.

    ``config``, a flat dataclass, and ``state_dict`` are what it reads. Of the configuration only
    what differs from the defaults counts, so that a field that is new to the library changes no
    hash.
    """
    config = {
        field.name: getattr(model.config, field.name)
        for field in dataclasses.fields(model.config)
        if not field.name.startswith(without) and getattr(model.config, field.name) != field.default
    }
    sha = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(without):
            sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()


def fingerprint(tokenizer: Any) -> str:
    """A hash of everything that decides a tokenizer's tokens, which a new decoder does not."""
    return digest(tokenizer, without=("decoder", "from_latent"))
