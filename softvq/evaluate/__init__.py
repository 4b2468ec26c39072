"""Measures: pictures against pictures, sets against sets, latents, and what a model costs."""

from softvq.evaluate.cost import Cost, count, generator_cost, throughput, tokenizer_cost
from softvq.evaluate.distances import (
    density_coverage,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from softvq.evaluate.features import FeatureNetwork, FeatureSet, load_network
from softvq.evaluate.inception import Inception
from softvq.evaluate.latents import (
    codebook_use,
    effective_rank,
    knn_accuracy,
    linear_probe,
    token_contributions,
)
from softvq.evaluate.pixels import box_masks, lpips, ms_ssim, psnr, ssim
from softvq.evaluate.probe import Probe, ProbeConfig
from softvq.evaluate.statistics import Statistics, open_statistics, save_statistics
from softvq.evaluate.trained import (
    evaluate_generation,
    evaluate_latents,
    evaluate_reconstruction,
)

__all__ = [
    "Cost",
    "FeatureNetwork",
    "FeatureSet",
    "Inception",
    "Probe",
    "ProbeConfig",
    "Statistics",
    "box_masks",
    "codebook_use",
    "count",
    "density_coverage",
    "effective_rank",
    "evaluate_generation",
    "evaluate_latents",
    "evaluate_reconstruction",
    "frechet_distance",
    "generator_cost",
    "inception_score",
    "kernel_distance",
    "knn_accuracy",
    "linear_probe",
    "load_network",
    "lpips",
    "ms_ssim",
    "open_statistics",
    "precision_recall",
    "psnr",
    "save_statistics",
    "ssim",
    "throughput",
    "token_contributions",
    "tokenizer_cost",
]
