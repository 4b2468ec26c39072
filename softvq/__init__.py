"""Photos to a few continuous tokens and back, and generators on those tokens.

>>> from softvq import Pipeline, Tokenizer

Names are imported when they are first used, so that ``import softvq`` is instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softvq.eye import Eye
    from softvq.generator.mar import MAR, MARConfig
    from softvq.generator.transformer import DiT, DiTConfig, SiT, SiTConfig
    from softvq.models import describe, open_generator, open_tokenizer
    from softvq.pipeline import Pipeline
    from softvq.tokenizer.config import TokenizerConfig
    from softvq.tokenizer.model import Tokenizer

__version__ = "0.1.0"
HOMES = {
    "DiT": "softvq.generator.transformer",
    "DiTConfig": "softvq.generator.transformer",
    "Eye": "softvq.eye",
    "MAR": "softvq.generator.mar",
    "MARConfig": "softvq.generator.mar",
    "Pipeline": "softvq.pipeline",
    "SiT": "softvq.generator.transformer",
    "SiTConfig": "softvq.generator.transformer",
    "Tokenizer": "softvq.tokenizer.model",
    "TokenizerConfig": "softvq.tokenizer.config",
    "describe": "softvq.models",
    "open_generator": "softvq.models",
    "open_tokenizer": "softvq.models",
}
__all__ = [
    "MAR",
    "DiT",
    "DiTConfig",
    "Eye",
    "MARConfig",
    "Pipeline",
    "SiT",
    "SiTConfig",
    "Tokenizer",
    "TokenizerConfig",
    "__version__",
    "describe",
    "open_generator",
    "open_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'softvq' has no attribute '{name}'")
    return getattr(importlib.import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
