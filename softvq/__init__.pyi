from .coding import decode_all, encode_all, reconstruct_all
from .errors import UserError
from .eye import Eye
from .generate import generate_folder
from .generator.config import DiTConfig, MARConfig, SiTConfig
from .generator.mar import MAR
from .generator.transformer import DiT, SiT
from .models import (
    describe,
    export_model,
    import_model,
    open_generator,
    open_probe,
    open_tokenizer,
)
from .pipeline import Pipeline
from .recipe import GeneratorRecipe, ProbeRecipe, TokenizerRecipe, load_recipe
from .study.study import run_study
from .tokenizer.bottleneck import Tokens
from .tokenizer.config import TokenizerConfig
from .tokenizer.model import Tokenizer
from .train.generator import train_generator
from .train.probe import train_probe
from .train.tokenizer import train_tokenizer

__version__: str

__all__ = [
    "MAR",
    "DiT",
    "DiTConfig",
    "Eye",
    "GeneratorRecipe",
    "MARConfig",
    "Pipeline",
    "ProbeRecipe",
    "SiT",
    "SiTConfig",
    "Tokenizer",
    "TokenizerConfig",
    "TokenizerRecipe",
    "Tokens",
    "UserError",
    "decode_all",
    "describe",
    "encode_all",
    "export_model",
    "generate_folder",
    "import_model",
    "load_recipe",
    "open_generator",
    "open_probe",
    "open_tokenizer",
    "reconstruct_all",
    "run_study",
    "train_generator",
    "train_probe",
    "train_tokenizer",
]
