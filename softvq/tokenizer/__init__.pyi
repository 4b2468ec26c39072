from .bottleneck import BOTTLENECKS, Tokens
from .config import TokenizerConfig
from .model import Tokenizer

__all__ = ["BOTTLENECKS", "Tokenizer", "TokenizerConfig", "Tokens"]
