"""Measures: pictures against pictures, sets against sets, and what a model costs."""

from softvq.evaluate.cost import Cost, count, generator_cost, throughput, tokenizer_cost
from softvq.evaluate.distances import (
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from softvq.evaluate.pixels import ms_ssim, psnr, ssim
from softvq.evaluate.probe import Probe, ProbeConfig

__all__ = [
    "Cost",
    "Probe",
    "ProbeConfig",
    "count",
    "frechet_distance",
    "generator_cost",
    "inception_score",
    "kernel_distance",
    "ms_ssim",
    "precision_recall",
    "psnr",
    "ssim",
    "throughput",
    "tokenizer_cost",
]
