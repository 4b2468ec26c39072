"""Write a tokenizer, and the generator beside it, as ONNX or as programs of torch.export.

    DIR/export.json                       what it is, with a hash of every file
    DIR/encoder, decoder, generator       .onnx or .pt2; see softvq.export.graphs
    DIR/parity.npz                        inputs, and the outputs that softvq computed for them
    DIR/verify.py                         compares, on the target

The expected outputs are torch's in float32. Where the weights are made 8-bit integers, the error is
measured here, and twice that is the tolerance that travels with the files.
"""

import contextlib
import hashlib
import inspect
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from softvq import coding, models
from softvq.errors import UserError
from softvq.export import verify
from softvq.export.graphs import DecoderGraph, EncoderGraph, FewStepGraph, GeneratorGraph
from softvq.export.verify import MANIFEST, PARITY, Manifest
from softvq.fingerprint import fingerprint
from softvq.generator.families import draw, family_of
from softvq.generator.flowmap import FlowMap
from softvq.generator.sampler import NoiseStreams
from softvq.io import replacing, write_atomically
from softvq.layers import evaluating
from softvq.outputs import claimed
from softvq.tokenizer.config import TokenizerConfig
from softvq.tokenizer.model import Tokenizer

Format = Literal["onnx", "torch"]
SUFFIX = {"onnx": ".onnx", "torch": ".pt2"}
SHAPES = ((0, 0), (97, 161), (230, 120), (37, 53))  # of parity photos; (0, 0): the model's own
TOLERANCE, LEVELS = 1e-4, 1  # of float32
MOST_ERROR = 0.25  # of 8 bits, relative: above it, something else is wrong
ANY = torch.export.Dim.DYNAMIC


@dataclass(frozen=True)
class Part:
    """One file: the graph, an example of each input, and which of their dimensions are free."""

    name: str
    graph: nn.Module
    inputs: dict[str, Tensor]
    free: tuple[dict[int, Any], ...]
    output: str


def export(
    source: str | Path,
    target: str | Path,
    form: Format = "onnx",
    int8: bool = False,
    steps: int = 4,
    guidance: float = 1.5,
) -> list[verify.Check]:
    """Write an export of a model's directory, of a pipeline's or of ``"shipped"``; and verify it.

    ``int8``: weights of linear layers as 8-bit integers (ONNX). ``steps``, ``guidance``: of the
    generator, where there is one. Raises UserError if the tokenizer is not ours, the target holds
    anything else, or what was written does not compute what softvq does.
    """
    if int8 and form != "onnx":
        raise UserError("--int8 goes with --format onnx")
    if form == "onnx":
        require_onnx()
    tokenizer = models.open_tokenizer(source)
    if not isinstance(tokenizer.config, TokenizerConfig):
        raise UserError(f"{source}: an autoencoder of diffusers is exported by its own project")
    generator, classes = _generator(source)
    graphs = parts(tokenizer, generator, steps, guidance)
    settings = {
        "source": fingerprint(tokenizer), "format": form, "int8": int8, "steps": steps,
        "guidance": guidance,
    }  # fmt: skip
    with claimed(target, "export", settings) as out:
        files = [part.name + SUFFIX[form] for part in graphs]
        *paths, parity, script, manifest = out.expect([*files, PARITY, "verify.py", MANIFEST])
        for part, path in zip(graphs, paths, strict=True):
            with replacing(path) as partial:
                WRITERS[form](part, partial)
                if int8:
                    _quantise(partial)
        arrays = _parity(tokenizer, generator, steps, guidance)
        with replacing(parity) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        write_atomically(script, inspect.getsource(verify))
        config = tokenizer.config
        made = Manifest(
            format=form,
            precision="int8" if int8 else "fp32",
            height=config.height,
            width=config.width,
            tokens=config.tokens,
            channels=config.channels,
            nested=config.nested,
            tokenizer=fingerprint(tokenizer),
            classes=classes,
            steps=steps if generator else 0,
            guidance=guidance,
            files={p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in [*paths, parity]},
            tolerance=1.0 if int8 else TOLERANCE,
            levels=255 if int8 else LEVELS,
            most_guidance=most_guidance(generator),
        )
        _write_manifest(manifest, made)
        if int8:
            _write_manifest(manifest, _measured(out.folder, made))
        checks = verify.verify(out.folder, OPENERS[form])
    if wrong := [check for check in checks if not check.ok]:
        raise UserError(
            f"{target}: what was written does not compute what softvq does ({wrong[0]}); report it "
            "with the model's config.json"
        )
    return checks


def parts(
    tokenizer: Tokenizer, generator: Any = None, steps: int = 4, guidance: float = 1.5
) -> list[Part]:
    """What is exported of a tokenizer and, if there is one, a generator."""
    config = tokenizer.config
    # Two of everything that is free: a 1 would be taken for a constant.
    photos = torch.zeros(2, config.height + 3, config.width + 5, 3, dtype=torch.uint8)
    count = max(config.tokens // 2, 2) if config.nested else config.tokens
    latents = torch.zeros(2, min(count, config.tokens), config.channels)
    free = {0: ANY, 1: ANY} if config.nested and config.tokens > 2 else {0: ANY}
    found = [
        Part(
            "encoder", EncoderGraph(tokenizer), {"pixels": photos}, ({0: ANY, 1: ANY, 2: ANY},),
            "latents",
        ),
        Part("decoder", DecoderGraph(tokenizer), {"latents": latents}, (free,), "pixels"),
    ]  # fmt: skip
    if generator is not None:
        inputs = {"noise": torch.zeros(2, config.tokens, config.channels)}
        if generator.config.num_classes:
            inputs["labels"] = torch.zeros(2, dtype=torch.int64)
        graph: nn.Module = GeneratorGraph(generator, steps, guidance, SAMPLER)
        if isinstance(generator, FlowMap):
            graph = FewStepGraph(generator, steps)
        if most_guidance(generator):
            inputs["guidance"] = torch.ones(2)
        batches: tuple[dict[int, Any], ...] = tuple({0: ANY} for _ in inputs)
        found.append(Part("generator", graph, inputs, batches, "latents"))
    return found


SAMPLER = "dpm_solver"  # of generators that take many steps


def most_guidance(generator: Any) -> float:
    """The largest scale that a generator takes as an input; 0 where guidance is no input."""
    few_step = isinstance(generator, FlowMap) and generator.config.num_classes
    return float(generator.config.most_guidance) if few_step else 0.0


def _generator(source: str | Path) -> tuple[Any, list[str]]:
    """The transformer beside a tokenizer, if there is one; a MAR loops, and is left out."""
    folder = models.model_folder(source)
    if not (folder / models.INDEX).is_file():
        return None, []
    found = models.open_parts(source)
    if getattr(found.generator.config, "summary", 0):
        raise UserError(
            f"{source}: its generator draws a summary beside its tokens, which no export "
            "knows; train one with model.summary=0"
        )
    if not family_of(found.generator).whole:
        warnings.warn(
            "a MAR draws in a loop, which is not exported; encoder and decoder are", stacklevel=2
        )
        return None, []
    return found.generator, found.classes


# ---- files ----


def require_onnx() -> None:
    """Raises UserError without the extra onnx."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; pip install 'softvq[onnx]'") from None


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Without what exporters say of torchvision, of types and of their own steps."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def write_onnx(part: Part, path: Path) -> None:
    """A part as one .onnx file, its weights inside."""
    with evaluating(part.graph), _hushed():
        program = torch.onnx.export(
            part.graph,
            tuple(part.inputs.values()),
            dynamo=True,
            dynamic_shapes=part.free,
            input_names=list(part.inputs),
            output_names=[part.output],
            external_data=False,
            verbose=False,
        )
        assert program is not None
        program.save(path, external_data=False)


def write_program(part: Part, path: Path) -> None:
    """A part as a program of torch.export, a .pt2 archive."""
    with evaluating(part.graph), _hushed():
        program = torch.export.export(
            part.graph, tuple(part.inputs.values()), dynamic_shapes=part.free
        )
        with path.open("wb") as file:
            torch.export.save(program, file)


def open_program(path: Path) -> verify.Run:
    """Run a .pt2 file as :func:`softvq.export.verify.open_onnx` runs an .onnx file."""
    with path.open("rb") as file:
        module = torch.export.load(file).module()

    @torch.no_grad()
    def run(**inputs: np.ndarray) -> np.ndarray:
        return np.asarray(module(*(torch.from_numpy(x) for x in inputs.values())).numpy())

    return run


WRITERS: dict[str, Callable[[Part, Path], None]] = {"onnx": write_onnx, "torch": write_program}
OPENERS = {"onnx": verify.open_onnx, "torch": open_program}


def _quantise(path: Path) -> None:
    """Weights of linear layers as 8-bit integers, a scale for each output; nothing else.

    They keep 7 bits of them: processors without VNNI add two products in 16 bits, which 8 overflow.

    Products with constants that are no layer's, such as a cosine transform or codewords, stay
    float32: an error there is one of every token.
    """
    import onnx
    from onnx import numpy_helper
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    weights = {one.name: one for one in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "Transpose"]:
        # A weight that several steps share is transposed when the graph runs.
        if node.input[0] in weights and len(weights[node.input[0]].dims) == 2:
            turned = numpy_helper.to_array(weights[node.input[0]]).T.copy()
            model.graph.initializer.append(numpy_helper.from_array(turned, node.output[0]))
            model.graph.node.remove(node)
    others = [n.name for n in model.graph.node if n.op_type in LINEAR and not _is_layer(n)]
    with _hushed():
        logging.getLogger().disabled, before = True, logging.getLogger().disabled
        try:
            quantize_dynamic(
                model, path, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8,
                op_types_to_quantize=LINEAR, nodes_to_exclude=others,
            )  # fmt: skip
        finally:
            logging.getLogger().disabled = before


LINEAR = ["MatMul", "Gemm"]


def _is_layer(node: Any) -> bool:
    """Whether a product is a linear layer's, by what torch's exporter notes beside it."""
    return any(
        one.key == "pkg.torch.onnx.class_hierarchy" and "aten.linear" in one.value
        for one in node.metadata_props
    )


def _write_manifest(path: Path, manifest: Manifest) -> None:
    write_atomically(path, json.dumps(asdict(manifest), indent=1) + "\n")


# ---- parity ----


def parity_photos(size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Photos of odd sizes, uint8 [H, W, 3]: waves of every length, edges and grain, of one seed."""
    random = np.random.default_rng(0)
    for height, width in SHAPES:
        height, width = height or size[0], width or size[1]
        y, x = np.mgrid[:height, :width].astype(np.float64)
        picture = np.zeros((height, width, 3))
        for wave in 2.0 ** np.arange(2, 9):
            angle, phase = random.uniform(0, 2 * np.pi, (2, 3))
            along = x[..., None] * np.cos(angle) + y[..., None] * np.sin(angle)
            picture += np.sqrt(wave) * np.sin(2 * np.pi * along / wave + phase)
        picture[height // 3 : height // 2, width // 4 : width // 2] += 20
        picture += random.normal(0, 2, picture.shape)
        yield np.clip(128 + 2 * picture, 0, 255).astype(np.uint8)


def _parity(
    tokenizer: Tokenizer, generator: Any, steps: int, guidance: float
) -> dict[str, np.ndarray]:
    """Inputs and outputs by ``part/case/name``: the library's own, not those of the graphs."""
    arrays: dict[str, np.ndarray] = {}
    photos = list(parity_photos(coding.size_of(tokenizer)))
    latents = coding.encode_all(tokenizer, [Image.fromarray(photo) for photo in photos])
    for i, photo in enumerate(photos):
        arrays[f"encoder/{i}/pixels"] = photo[None]
        arrays[f"encoder/{i}/output"] = latents[i : i + 1].numpy()
    config = tokenizer.config
    fewer = {1, max(1, config.tokens // 2)} if config.nested else set()
    for k in sorted({config.tokens, *fewer}):
        arrays[f"decoder/{k}/latents"] = latents[:, :k].numpy()
        arrays[f"decoder/{k}/output"] = coding.decode_all(tokenizer, latents[:, :k])
    if generator is not None:
        noise = torch.randn(2, config.tokens, config.channels, generator=torch.manual_seed(0))
        labels = torch.arange(2) % max(1, generator.config.num_classes)
        given = labels if generator.config.num_classes else None
        arrays["generator/0/noise"] = noise.numpy()
        if given is not None:
            arrays["generator/0/labels"] = given.numpy()
        options: dict[str, Any] = {"guidance": guidance, "sampler": SAMPLER}
        if isinstance(generator, FlowMap):
            scale = torch.tensor([1.0, most_guidance(generator) or 1.0])
            options = {"guidance": scale}
            if given is not None:
                arrays["generator/0/guidance"] = scale.numpy()
        with evaluating(generator):
            drawn = draw(generator, _Given(noise), given, steps=steps, **options)
        arrays["generator/0/output"] = drawn.numpy()
    return arrays


class _Given(NoiseStreams):
    """Streams whose one draw is given."""

    def __init__(self, noise: Tensor):
        self.noise = noise

    def draw(self, *shape: int) -> Tensor:
        return self.noise if len(shape) == 2 else self.noise.transpose(1, 2).unflatten(2, shape[1:])


def _measured(folder: Path, manifest: Manifest) -> Manifest:
    """With twice the error that the files have here as the tolerance."""
    with np.load(folder / PARITY, allow_pickle=False) as stored:
        arrays = dict(stored)
    worst, levels = 0.0, 0.0
    for key in [key for key in arrays if key.endswith("/output")]:
        part, case, _ = key.split("/")
        prefix = f"{part}/{case}/"
        given = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        wanted = given.pop("output").astype(np.float64)
        found = verify.open_onnx(folder / f"{part}.onnx")(**given)
        difference = np.abs(found - wanted)
        if arrays[key].dtype == np.uint8:
            levels = max(levels, float(np.quantile(difference, verify.LEVELS_SHARE)))
        else:
            worst = max(worst, float(difference.max() / np.abs(wanted).max()))
    if worst > MOST_ERROR:
        raise UserError(f"8 bits are too few for this model (error {worst:.0%}); leave out --int8")
    return replace(manifest, tolerance=2 * worst, levels=int(np.ceil(2 * levels)))
