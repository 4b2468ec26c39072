"""The fastest engine and precision for encoding on this CPU: torch, onnxruntime, OpenVINO.

    python benchmarks/engines.py [--model shipped | --recipe softvq-b-64] [--batch 4] [--seconds 5]

Rows: torch float32, bf16 by autocast, bf16 with weights cast once, dynamic int8; onnxruntime
float32 and dynamic int8; OpenVINO (where it is installed). All in one process, one after the other,
twice round, the better of the two: photos a second, in wall and in processor time, the relative
error of tokens (mean square) and the PSNR of the photos that they give back, against float32.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from softvq import coding, models
from softvq.data import find_photos
from softvq.evaluate.pixels import psnr_per_image
from softvq.export.verify import open_onnx
from softvq.export.write import _quantise, parts, write_onnx
from softvq.images import fit, to_tensor
from softvq.precision import bfloat16
from softvq.recipe import TokenizerRecipe, load_recipe
from softvq.tokenizer.model import Tokenizer

Encode = Callable[[np.ndarray], np.ndarray]


def torch_encode(tokenizer: Tokenizer) -> Encode:
    @torch.inference_mode()
    def encode(photos: np.ndarray) -> np.ndarray:
        latents = tokenizer.encode(to_tensor(photos)).latents
        return tokenizer.normalize(latents.float()).numpy()

    return encode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="shipped")
    parser.add_argument("--recipe")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    if asked.recipe:
        tokenizer = Tokenizer(load_recipe(TokenizerRecipe, asked.recipe, ()).model).eval()
    else:
        tokenizer = models.open_tokenizer(asked.model)
    listing = find_photos("builtin", "all")
    size = coding.size_of(tokenizer)
    photos = np.stack([
        np.asarray(fit(listing.read(i % len(listing.names)), size)) for i in range(asked.batch)
    ])  # fmt: skip
    plain = torch_encode(tokenizer)
    wanted = plain(photos)
    rows: dict[str, tuple[Encode, object]] = {"torch float32": (plain, None)}

    def autocast(given: np.ndarray) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16):
            return plain(given)

    def cast_once(given: np.ndarray) -> np.ndarray:
        return plain(given)

    rows["torch bf16, autocast"] = (autocast, None)
    rows["torch bf16, weights cast once"] = (cast_once, bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(
            tokenizer, {torch.nn.Linear}, torch.qint8
        )
    rows["torch int8, dynamic"] = (torch_encode(quantised), None)
    with TemporaryDirectory() as folder:
        path, small = Path(folder) / "encoder.onnx", Path(folder) / "int8.onnx"
        write_onnx(parts(tokenizer)[0], path)
        small.write_bytes(path.read_bytes())
        _quantise(small)
        for name, file in (("onnxruntime float32", path), ("onnxruntime int8, dynamic", small)):
            run = open_onnx(file, asked.threads)
            rows[name] = (lambda given, run=run: run(pixels=given), None)
        try:
            import openvino
        except ImportError:
            print("OpenVINO is not installed: left out")
        else:
            for hint in ("f32", "bf16"):
                compiled = openvino.Core().compile_model(
                    path, "CPU",
                    {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": asked.threads},
                )  # fmt: skip
                rows[f"OpenVINO {hint}"] = (lambda given, c=compiled: c([given])[0], None)
        print(f"{asked.recipe or asked.model}, batch {asked.batch}, {asked.threads} thread(s)\n")
        print(
            "| engine | photos/s | per CPU second | error of tokens | PSNR lost, dB |\n"
            "|---|---|---|---|---|"
        )
        best: dict[str, list[float]] = {}
        for _ in range(2):
            for name, (encode, context) in rows.items():
                if context is None:
                    rate = speed(encode, photos, asked.seconds)
                else:
                    with context(tokenizer):  # type: ignore[operator]
                        rate = speed(encode, photos, asked.seconds)
                best.setdefault(name, [0, 0])
                best[name] = [max(pair) for pair in zip(best[name], rate, strict=True)]
        known = coding.decode_all(tokenizer, torch.from_numpy(wanted))
        for name, (encode, context) in rows.items():
            if context is None:
                found = encode(photos)
            else:
                with context(tokenizer):  # type: ignore[operator]
                    found = encode(photos)
            error = float(np.sqrt(np.square(found - wanted).mean() / np.square(wanted).mean()))
            rebuilt = coding.decode_all(tokenizer, torch.from_numpy(np.array(found)))
            lost = psnr_per_image(photos, known).mean() - psnr_per_image(photos, rebuilt).mean()
            wall, cpu = best[name]
            print(f"| {name} | {wall:.1f} | {cpu:.1f} | {error:.1e} | {lost:.2f} |", flush=True)


def speed(encode: Encode, photos: np.ndarray, seconds: float) -> tuple[float, float]:
    """Photos a second of wall time and of this process's processor time."""
    encode(photos)
    count, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.process_time() - cpu < seconds and time.perf_counter() - wall < 8 * seconds:
        encode(photos)
        count += len(photos)
    return count / (time.perf_counter() - wall), count / (time.process_time() - cpu)


if __name__ == "__main__":
    main()
