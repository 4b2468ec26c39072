"""The golden comparisons on vectors of other settings, which are made here by brute force."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_diffusion
import test_reference
import torch
from safetensors.torch import save_file
from vectors import Golden, timesteps_of

SPACINGS = ("full", "13", "ddim20", "10,5,3")


def betas_of(schedule: str) -> list[float]:
    if schedule == "linear":
        return [1e-4 + (0.02 - 1e-4) * k / 999 for k in range(1000)]
    abar = torch.cos((torch.arange(1001).double() / 1000 + 0.008) / 1.008 * torch.pi / 2) ** 2
    return (1 - abar[1:] / abar[:-1]).clamp(max=0.999).tolist()


def kept_steps(spacing: str) -> list[int]:
    """As published: a fractional stride within each of the equal sections."""
    if spacing == "full":
        return list(range(1000))
    if spacing.startswith("ddim"):
        return list(range(0, 1000, 1000 // int(spacing[4:])))
    counts, start, kept = [int(count) for count in spacing.split(",")], 0, []
    for i, count in enumerate(counts):
        size = 1000 // len(counts) + (i < 1000 % len(counts))
        kept += [start + round(j * (size - 1) / (count - 1)) for j in range(count)]
        start += size
    return kept


def write_schedules(folder) -> None:
    """Tables of the respaced diffusion (Ho et al. 2020), number by number."""
    tensors = {}
    for schedule in ("linear", "cosine"):
        for spacing in SPACINGS:
            betas, kept, abar, before, rows = betas_of(schedule), kept_steps(spacing), 1.0, 1.0, []
            for k, beta in enumerate(betas):
                abar *= 1 - beta
                if k in kept:
                    step = 1 - abar / before  # the beta of the respaced process
                    rows.append({
                        "betas": step,
                        "alphas_cumprod": abar,
                        "sqrt_recip_alphas_cumprod": abar**-0.5,
                        "sqrt_recipm1_alphas_cumprod": (1 / abar - 1) ** 0.5,
                        "posterior_mean_coef1": step * before**0.5 / (1 - abar),
                        "posterior_mean_coef2": (1 - before) * (1 - step) ** 0.5 / (1 - abar),
                        "posterior_variance": step * (1 - before) / (1 - abar),
                    })  # fmt: skip
                    before = abar
            for name in rows[0]:
                column = torch.tensor([row[name] for row in rows], dtype=torch.float64)
                tensors[f"out.{schedule}_{spacing}.{name}"] = column
            tensors[f"out.{schedule}_{spacing}.timestep_map"] = torch.tensor(kept)
    settings = {"spacings": ["" if s == "full" else s for s in SPACINGS]}
    write(folder, "diffusion_schedules_others", tensors, settings, 1e-9)


def write(folder, name: str, tensors: dict, settings: dict, tolerance: float) -> None:
    """A golden file, and what its tensors may be off by in the folder's INDEX.json."""
    save_file(tensors, folder / f"{name}.safetensors", {"config": json.dumps(settings)})
    peaks = {key: max(1.0, float(value.abs().max())) for key, value in tensors.items()}
    allowed = {key: {"tol_abs": tolerance * peak} for key, peak in peaks.items()}
    index = folder / "INDEX.json"
    known = json.loads(index.read_text()) if index.is_file() else {}
    index.write_text(json.dumps(known | {name: {"tensors": allowed}}))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def write_soft(folder, tau: float = 0.2, codebooks: int = 8) -> None:
    """The soft assignment and its gradients by hand, in float64: q = softmax(z . c / tau) of unit
    vectors, z' = sum q c, the codewords detached in q; 0.01 (H(p) - H(E p)), p at 0.01, pooled."""
    rng = np.random.default_rng(0)
    images, tokens, channels, size, ratio, sharp = 3, 32, 16, 64, 0.01, 0.01
    draw = [(codebooks, size, channels), (images, tokens, channels), (images, tokens, channels)]
    embedding, z, w = (rng.normal(size=shape).astype(np.float32) for shape in draw)

    def segments(x):  # [B, L, C] -> [G, B L / G, C]
        parts = x.reshape(images, codebooks, -1, channels).swapaxes(0, 1)
        return parts.reshape(codebooks, -1, channels).astype(np.float64)

    def whole(x):
        parts = x.reshape(codebooks, images, -1, channels).swapaxes(0, 1)
        return torch.from_numpy(parts.reshape(images, tokens, channels).astype(np.float32))

    def through_unit(grad, x):  # the gradient of x, from that of x / |x|
        u, length = unit(x), np.linalg.norm(x, axis=-1, keepdims=True)
        return (grad - u * (u * grad).sum(-1, keepdims=True)) / length

    e, x, g = embedding.astype(np.float64), segments(z), segments(w)
    c, u = unit(e), unit(x)
    score = u @ c.swapaxes(1, 2)
    q, p = softmax(score / tau), softmax(score / sharp)
    mixed, count = q @ c, images * tokens
    shifted = (score - score.max(-1, keepdims=True)) / sharp
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    mean = p.mean((0, 1))
    entropy = -(p * log_p).sum(-1).mean() + (mean * np.log(mean + 1e-6)).sum()
    by_q = g @ c.swapaxes(1, 2)
    by_score = q * (by_q - (q * by_q).sum(-1, keepdims=True)) / tau
    by_p = (np.log(mean + 1e-6) + mean / (mean + 1e-6) - log_p - 1) * ratio / count
    by_score += p * (by_p - (p * by_p).sum(-1, keepdims=True)) / sharp
    nearest = score.argmax(-1)
    record = np.zeros((codebooks, 256))
    record[:, -codebooks:] = nearest[:, :codebooks].T
    used = np.mean([len(np.unique(row)) for row in record]) / size
    cosine = (u * unit(mixed)).sum(-1).mean()
    scalars = {
        "entropy_loss": ratio * entropy, "vq_loss": 0.0, "commit_loss": 0.0, "usage": used,
        "zq_z_cos": cosine, "max_probs": q.max(-1).mean(),
    }  # fmt: skip
    tensors = {f"out.{k}": torch.tensor(v, dtype=torch.float32) for k, v in scalars.items()} | {
        "sd.embedding": torch.from_numpy(embedding),
        "in.z": torch.from_numpy(z),
        "in.w": torch.from_numpy(w),
        "out.quant_eval": whole(mixed),
        "out.quant_train": whole(mixed),
        "out.grad_z": whole(through_unit(by_score @ c, x)),
        "grad.embedding": torch.from_numpy(
            through_unit(q.swapaxes(1, 2) @ g, e).astype(np.float32)
        ),
        # As the reference keeps them: by codebook, viewed as if by image.
        "out.indices": torch.from_numpy(nearest.reshape(images, codebooks, -1)),
        "out.codebook_used_tail_after": torch.from_numpy(record.astype(np.float32)),
    }
    settings = {
        "kind": "soft", "n_e": size, "dim": channels, "ent": ratio, "tau": tau, "cb": codebooks,
        "l2": True, "T": tokens,
    }  # fmt: skip
    write(folder, f"quant_soft_cb{codebooks}_tau{tau}", tensors, settings, 1e-5)


def test_soft_assignment_of_other_codebooks_and_temperature(tmp_path):
    write_soft(tmp_path)
    path = tmp_path / "quant_soft_cb8_tau0.2.safetensors"
    test_reference.test_golden_soft_quantisation(Golden(path))
    golden = Golden(path)
    golden.config["tau"] = 0.07  # what the open vectors have, and nothing may assume
    with pytest.raises(AssertionError, match=r"out\.quant_eval: off by"):
        test_reference.test_golden_soft_quantisation(golden)


@pytest.mark.slow
def test_the_table_reads_settings_from_the_files(tmp_path):
    write_schedules(tmp_path)
    write_soft(tmp_path)
    tool = Path(__file__).parents[1] / "tools" / "golden_tables.py"
    command = [sys.executable, tool, "--golden", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    for part in (
        "quant_soft_cb8_tau0.2 | out.quant_eval", "linear_13.betas", "cosine_ddim20.betas",
        "linear_10,5,3.betas", "of 2 files; worst ratio 0.",
    ):  # fmt: skip
        assert part in done.stdout


def test_schedules_of_other_spacings(tmp_path):
    write_schedules(tmp_path)
    golden = Golden(tmp_path / "diffusion_schedules_others.safetensors")
    test_diffusion.test_golden_tables(golden)
    golden.tensors["out.linear_10,5,3.betas"][4] += 1e-3
    with pytest.raises(AssertionError, match=r"out\.linear_10,5,3\.betas: off by 0\.00"):
        test_diffusion.test_golden_tables(golden)


@pytest.mark.parametrize("spacing", [*SPACINGS, "8", "250", "ddim50", "ddim100", "4,3,2,2"])
def test_timesteps_of_a_spacing(spacing):
    assert timesteps_of(spacing).tolist() == kept_steps(spacing)
