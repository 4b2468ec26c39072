"""Images to a few continuous tokens and back. Names are imported when they are first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softvq.tokenizer.bottleneck import BOTTLENECKS, Tokens
    from softvq.tokenizer.config import TokenizerConfig
    from softvq.tokenizer.model import Tokenizer

HOMES = {
    "BOTTLENECKS": "softvq.tokenizer.bottleneck",
    "Tokenizer": "softvq.tokenizer.model",
    "TokenizerConfig": "softvq.tokenizer.config",
    "Tokens": "softvq.tokenizer.bottleneck",
}
__all__ = ["BOTTLENECKS", "Tokenizer", "TokenizerConfig", "Tokens"]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'softvq.tokenizer' has no attribute '{name}'")
    return getattr(importlib.import_module(HOMES[name]), name)
