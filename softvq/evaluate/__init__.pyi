from .cost import Cost, count, generator_cost, throughput, tokenizer_cost
from .distances import (
    density_coverage,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from .features import FeatureNetwork, FeatureSet, eye_features, load_network
from .inception import Inception
from .latents import (
    codebook_use,
    effective_rank,
    knn_accuracy,
    linear_probe,
    token_contributions,
)
from .pixels import box_masks, eye_distance, lpips, psnr, ssim
from .statistics import Statistics, open_statistics, save_statistics
from .trained import (
    evaluate_generation,
    evaluate_latents,
    evaluate_reconstruction,
)

__all__ = [
    "Cost",
    "FeatureNetwork",
    "FeatureSet",
    "Inception",
    "Statistics",
    "box_masks",
    "codebook_use",
    "count",
    "density_coverage",
    "effective_rank",
    "evaluate_generation",
    "evaluate_latents",
    "evaluate_reconstruction",
    "eye_distance",
    "eye_features",
    "frechet_distance",
    "generator_cost",
    "inception_score",
    "kernel_distance",
    "knn_accuracy",
    "linear_probe",
    "load_network",
    "lpips",
    "open_statistics",
    "precision_recall",
    "psnr",
    "save_statistics",
    "ssim",
    "throughput",
    "token_contributions",
    "tokenizer_cost",
]
