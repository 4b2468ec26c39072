"""Do exported models compute, on this machine, what softvq computed? Needs onnxruntime and numpy.

This file travels with every export: ``python DIR/verify.py DIR`` does the same as
``softvq verify DIR`` where softvq is not installed. It imports nothing of softvq.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MANIFEST = "export.json"
PARITY = "parity.npz"
LEVELS_SHARE = 0.999  # of pixels that must lie within one level


class Unusable(ValueError):
    """A folder that holds no export, or a damaged one. The message names cause and mend."""


@dataclass(frozen=True)
class Check:
    """What was looked at, whether it is right, and the figure that says so."""

    name: str
    ok: bool
    found: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.ok else 'FAIL'}  {self.name}: {self.found}"


@dataclass(frozen=True)
class Manifest:
    """What an export says of itself; ``export.json``.

    format: onnx | torch.  precision: fp32 | int8.  height, width: pixels of the pictures that
    tokens stand for.  tokens, channels: L and C.  nested: whether any first k tokens decode.
    tokenizer: fingerprint of the tokenizer.  classes: of the generator, where there is one.
    steps, guidance: unrolled in the generator.  files: SHA-256 by name.
    tolerance: largest error of tokens, relative to the largest token.
    levels: pixels may differ by so many of 255 (99.9% of them).
    most_guidance: of a generator that takes guidance as an input, from 1 to this; else 0.
    """

    format: str
    precision: str
    height: int
    width: int
    tokens: int
    channels: int
    nested: bool
    tokenizer: str
    classes: list[str]
    steps: int
    guidance: float
    files: dict[str, str]
    tolerance: float
    levels: int
    most_guidance: float = 0.0

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Raises Unusable if it is missing or damaged."""
        try:
            return cls(**json.loads((directory / MANIFEST).read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise Unusable(
                f"{directory}: no {MANIFEST} there; give a folder that `softvq export` wrote"
            ) from None
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise Unusable(
                f"{directory / MANIFEST}: damaged ({error}); export the model again"
            ) from None


Run = Callable[..., np.ndarray]


def open_onnx(path: Path, threads: int = 0) -> Run:
    """A model of one output: ``run(pixels=array)`` -> array. ``threads``: 0 for all cores."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(**inputs: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, inputs)[0])

    return run


def verify(directory: str | Path, open_model: Callable[[Path], Run] = open_onnx) -> list[Check]:
    """Hash every file, and compare every stored output with what this machine computes.

    Raises Unusable if the folder holds no export that can be read.
    """
    directory = Path(directory)
    manifest = Manifest.read(directory)
    checks = [_hashed(directory / name, known) for name, known in manifest.files.items()]
    try:
        with np.load(directory / PARITY, allow_pickle=False) as stored:
            arrays = dict(stored)
    except (OSError, ValueError, KeyError) as error:
        raise Unusable(
            f"{directory / PARITY}: not readable ({error}); export the model again"
        ) from None
    suffix = {"onnx": ".onnx", "torch": ".pt2"}[manifest.format]
    for part in ("encoder", "decoder", "generator"):
        if part + suffix in manifest.files:
            checks += _compared(directory / (part + suffix), part, arrays, manifest, open_model)
    return checks


def _hashed(path: Path, known: str) -> Check:
    if not path.is_file():
        return Check(path.name, False, "is missing")
    same = hashlib.sha256(path.read_bytes()).hexdigest() == known
    return Check(path.name, same, "as exported" if same else "differs from what was exported")


def _compared(
    path: Path,
    part: str,
    arrays: dict[str, np.ndarray],
    manifest: Manifest,
    open_model: Callable[[Path], Run],
) -> list[Check]:
    """One check for each stored case ``part/case/input-name`` and ``part/case/output``."""
    cases = sorted({key.split("/")[1] for key in arrays if key.startswith(f"{part}/")})
    try:
        run = open_model(path)
    # The runtime has errors of its own, and raises them without a common base.
    except Exception as error:  # noqa: BLE001
        return [Check(f"{part}", False, f"does not load: {_line(error)}")]
    checks = []
    for case in cases:
        prefix = f"{part}/{case}/"
        given = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        wanted = given.pop("output")
        shape = " x ".join(str(n) for n in next(iter(given.values())).shape)
        name = f"{part} on {shape}"
        try:
            found = run(**given)
        except Exception as error:  # noqa: BLE001 - as above
            checks.append(Check(name, False, f"does not run: {_line(error)}"))
            continue
        checks.append(_close(name, found, wanted, manifest))
    return checks


def _close(name: str, found: np.ndarray, wanted: np.ndarray, manifest: Manifest) -> Check:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        what = f"{found.dtype} {list(found.shape)}, not {wanted.dtype} {list(wanted.shape)}"
        return Check(name, False, what)
    difference = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
    if wanted.dtype == np.uint8:
        share = float((difference <= manifest.levels).mean())
        text = f"{share:.2%} of pixels within {manifest.levels} of 255 levels"
        return Check(name, share >= LEVELS_SHARE, text)
    error = float(difference.max() / np.abs(wanted).max())
    return Check(name, error <= manifest.tolerance, f"relative error {error:.1e}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def main(argv: list[str]) -> int:
    """``python verify.py DIR``: a line for each check; exit code 0 if all are right, else 2."""
    try:
        checks = verify(argv[1] if len(argv) > 1 else Path(__file__).parent)
    except Unusable as error:
        print(f"verify: error: {error}", file=sys.stderr)
        return 2
    print("\n".join(map(str, checks)))
    return 0 if all(check.ok for check in checks) else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv))
