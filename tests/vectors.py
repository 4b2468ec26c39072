"""Golden files of the reference implementation: tensors, their tolerances, and the networks."""

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

from softvq.generator.diffusion import Diffusion
from softvq.generator.sampler import time_grid
from softvq.generator.transformer import SiT, TokenTransformer

# The first folder is in the repository and holds parts of some files; the other holds everything,
# where the acceptance material lies beside the repository or SOFTVQ_GOLDEN says.
HERE = Path(__file__).parent / "golden"
BESIDE = Path(__file__).parents[2] / "shared" / "golden" / "model"
BESIDE = Path(os.environ.get("SOFTVQ_GOLDEN", BESIDE))
SUFFIX = ".safetensors"


class Comparison(NamedTuple):
    """One tensor beside a golden one: ``ratio`` is the worst error over what is allowed."""

    file: str
    tensor: str
    ratio: float


COMPARISONS: list[Comparison] = []  # of this process; tools/golden_tables.py prints them


class Golden:
    """One golden file: its tensors, its settings, and a comparison by its own tolerances."""

    def __init__(self, path: Path):
        self.name = f"{path.parent.name}/{path.stem}"
        with safe_open(path, "pt") as file:
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}
            metadata = file.metadata()
        if "tolerances" in metadata:
            self.tolerances = json.loads(metadata["tolerances"])
        else:
            index = json.loads((path.parent / "INDEX.json").read_text())[path.stem]["tensors"]
            self.tolerances = {k: v["tol_abs"] for k, v in index.items() if "tol_abs" in v}
        self.config = json.loads(metadata["config"])

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def starting(self, prefix: str) -> dict[str, torch.Tensor]:
        found = {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}
        assert found
        return found

    def results(self, pattern: str) -> dict[str, dict[str, str | None]]:
        """The keys that match a pattern whole, each with what its named groups matched.

        A key says how its tensor was made: ``out.ddim20_linear_cfg1.5``.
        """
        matches = {key: re.fullmatch(pattern, key) for key in self.tensors}
        found = {key: match.groupdict() for key, match in matches.items() if match}
        assert found, f"{self.name}: no {pattern}"
        return found

    def check(self, key: str, value: torch.Tensor) -> None:
        assert value.shape == self[key].shape
        error = (value.double() - self[key].double()).abs().max().item()
        ratio = error / self.tolerances[key]
        COMPARISONS.append(Comparison(self.name, key, ratio))
        assert ratio <= 1, f"{key}: off by {error}, {self.tolerances[key]} allowed"


class GoldenNet(Golden):
    """A golden file of a DiT or SiT, and the network with its weights."""

    def __init__(self, path: Path, net_class: type[TokenTransformer]):
        super().__init__(path)
        official = self.config
        config = net_class.config_class(
            tokens=official["T"] if official["vae_1d"] else official["T"] ** 2,
            channels=official["C"],
            num_classes=len(self["sd.y_embedder.embedding_table.weight"]) - 1,
            width=official["hid"],
            depth=official["depth"],
            heads=official["heads"],
            qk_norm=official.get("qk_norm", False),
            patch=None if official["vae_1d"] else official["p"],
        )
        self.net = net_class(config).eval()
        self.positions = self.net.pos_embed.clone()
        self.net.load_state_dict(self.starting("sd."))


def found(pattern: str) -> list[Path]:
    """The golden files of a kind in both folders."""
    return [path for folder in (HERE, BESIDE) for path in sorted(folder.glob(pattern + SUFFIX))]


def named(path: Path) -> str:
    """A golden file's name in a test's."""
    return f"{path.parent.parent.name}-{path.stem}"


def timesteps_of(spacing: str, total: int = 1000) -> torch.Tensor:
    """Rising timesteps that a spacing keeps (Nichol & Dhariwal 2021 and their published code).

    ``full`` keeps all; ``13`` thirteen of even distance; ``10,5,3`` ten of the first third, five of
    the second, three of the last; ``ddim20`` every n-th from 0, for the n that makes 20.
    """
    if spacing == "full":
        return torch.arange(total)
    if spacing.startswith("ddim"):
        kept = (torch.arange(0, total, n) for n in range(1, total))
        return next(k for k in kept if len(k) == int(spacing.removeprefix("ddim")))
    if "," not in spacing:  # what the library itself makes
        process = Diffusion(steps=total)
        return process.clock(time_grid(int(spacing), process=process)[:-1]).round().long().flip(0)
    counts = [int(count) for count in spacing.split(",")]
    sizes = [total // len(counts) + (i < total % len(counts)) for i in range(len(counts))]
    starts = [sum(sizes[:i]) for i in range(len(counts))]
    sections = [
        start + torch.linspace(0, size - 1 if count > 1 else 0, count, dtype=torch.float64).round()
        for start, size, count in zip(starts, sizes, counts, strict=True)
    ]
    return torch.cat(sections).long()


def random_net(config, net_class: type[TokenTransformer] = SiT) -> TokenTransformer:
    """A net with every weight drawn, for adaLN-Zero starts as the zero function."""
    torch.manual_seed(0)
    net = net_class(config).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net
