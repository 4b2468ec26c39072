"""The golden comparisons on vectors of other settings, which are made here by brute force."""

import json

import pytest
import test_diffusion
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
    path = folder / "diffusion_schedules_others.safetensors"
    save_file(tensors, path, {"config": json.dumps(settings)})
    tolerances = {k: {"tol_abs": 1e-9 * max(1.0, float(v.abs().max()))} for k, v in tensors.items()}
    (folder / "INDEX.json").write_text(json.dumps({path.stem: {"tensors": tolerances}}))


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
