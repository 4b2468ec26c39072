"""Golden files of the reference implementation: tensors, their tolerances, and the networks."""

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open

from softvq.generator.transformer import SiT, TokenTransformer

# The first folder is in the repository and holds parts of some files; the other holds everything,
# where the acceptance material lies beside the repository or SOFTVQ_GOLDEN says.
HERE = Path(__file__).parent / "golden"
BESIDE = Path(__file__).parents[2] / "shared" / "golden" / "model"
BESIDE = Path(os.environ.get("SOFTVQ_GOLDEN", BESIDE))


class Golden:
    """One golden file: its tensors, its settings, and a comparison by its own tolerances."""

    def __init__(self, path: Path):
        self.name = f"{path.parent.name}/{path.stem}"
        with safe_open(path.with_suffix(".safetensors"), "pt") as file:
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

    def check(self, key: str, value: torch.Tensor) -> None:
        assert value.shape == self[key].shape
        error = (value.double() - self[key].double()).abs().max().item()
        ratio = error / self.tolerances[key]
        print(f"{self.name:40} {key:50} {ratio:8.4f}")
        assert ratio <= 1, f"{key}: off by {error}, {self.tolerances[key]} allowed"


class GoldenNet(Golden):
    """A golden file of a DiT or SiT, and the network with its weights."""

    def __init__(self, path: Path, net_class: type[TokenTransformer]):
        super().__init__(path)
        official = self.config
        config = net_class.config_class(
            tokens=official["T"] if official["vae_1d"] else official["T"] ** 2,
            channels=official["C"],
            num_classes=1000,
            width=official["hid"],
            depth=official["depth"],
            heads=official["heads"],
            qk_norm=official.get("qk_norm", False),
            patch=None if official["vae_1d"] else official["p"],
        )
        self.net = net_class(config).eval()
        self.positions = self.net.pos_embed.clone()
        self.net.load_state_dict(self.starting("sd."))


def random_net(config, net_class: type[TokenTransformer] = SiT) -> TokenTransformer:
    """A net with every weight drawn, for adaLN-Zero starts as the zero function."""
    torch.manual_seed(0)
    net = net_class(config).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net
