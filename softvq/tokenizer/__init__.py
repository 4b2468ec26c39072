from softvq.tokenizer.bottleneck import BOTTLENECKS, Tokens
from softvq.tokenizer.model import Tokenizer, TokenizerConfig

__all__ = ["BOTTLENECKS", "Tokenizer", "TokenizerConfig", "Tokens"]
