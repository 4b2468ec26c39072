"""The command line: instant help, one line per error, and the whole road on the built-in photos."""

import errno
import json
import shlex
import shutil
import subprocess
import sys
import warnings
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from helpers.artifacts import train_tokenizer
from helpers.pictures import tiles
from PIL import Image

from softvq import SiT, SiTConfig, cli, commands, images, options
from softvq.data import find_photos
from softvq.errors import SoftVQWarning, UserError
from softvq.evaluate.statistics import Statistics, is_ours, save_statistics
from softvq.evaluate.trained import evaluate_latents
from softvq.fields import field_help
from softvq.generator.sampler import SAMPLERS
from softvq.probe import Probe, ProbeConfig
from softvq.recipe import KINDS, SHAPES
from softvq.tokenizer import Tokenizer
from softvq.train.summary import noise_store

COMMANDS = list(cli.COMMANDS)
GROUPS = [name for name in cli.GROUPS if name]


def run(capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process."""
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def assert_one_line_error(result, *expected):
    code, _, err = result
    assert code == 2
    assert err.startswith("softvq: error: ") and err.count("\n") == 1
    for text in expected:
        assert str(text) in err


# ---- help ----


@pytest.mark.parametrize(
    "code",
    [
        "import softvq",
        "from softvq import cli; cli.main(['--help']); cli.main(['study', '--help'])",
        "from softvq import cli; cli.main(['encode', '--data', 'x'])",
    ],
)
def test_import_and_help_do_not_import_torch(code):
    check = f"{code}; import sys; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)


def test_recipes_are_explained_without_torch(capsys):
    """Every key of every kind of recipe, in a sentence."""
    code = (
        "from softvq import cli; [cli.main(['train', x, '--help']) "
        "for x in ('tokenizer', 'generator', 'probe')]; "
        "import sys; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    seen: list[type] = [*KINDS.values(), *SHAPES.values()]
    for kind in seen:
        said, hints = field_help(kind), get_type_hints(kind)
        for field in fields(kind):
            if is_dataclass(hints[field.name]):
                seen.append(hints[field.name])
                continue
            text = said[field.name]
            assert text.endswith(".") and len(text.split()) > 2, (kind, field.name)
    out = run(capsys, "train", "tokenizer", "--help")[1]
    for text in ("adversary.lecam=0", "alignment.scheme=repeat", "Weight of LPIPS"):
        assert text in out


def test_quiet_hides_progress_and_no_warning(monkeypatch, capsys):
    def work(asked):
        print("progress", file=sys.stderr)
        warnings.warn("a library's", UserWarning, stacklevel=1)
        warnings.warn("few photos", SoftVQWarning, stacklevel=1)
        return commands.Outcome("the result")

    monkeypatch.setattr(commands, "demo", work)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run(capsys, "demo", "--out", "x", "--quiet") == (
            0, "", "softvq: warning: few photos\n"
        )  # fmt: skip


def test_choices_are_refused_at_once(capsys):
    """Before torch is there: what an option can be stands in options.py."""
    assert set(get_args(options.Sampler)) == set(SAMPLERS)
    assert_one_line_error(run(capsys, "generate", "--sampler", "eule", "--out", "x"), "--sampler")
    for command in ("generate", "evaluate generation"):
        assert ",".join(get_args(options.Sampler)) in run(capsys, *command.split(), "--help")[1]
    study = ["study", "--data", "x", "--out", "x", "--train"]
    assert_one_line_error(
        run(capsys, *study, "softvq,vqq"), "'vqq' is none of softvq, decoder, kl, vq, ae"
    )
    assert_one_line_error(
        run(capsys, "study", "--data", "x", "--out", "x", "--hold", "a"), "--hold"
    )


def test_lazy_names():
    import softvq

    for name in softvq.__all__:
        assert getattr(softvq, name) is not None
    with pytest.raises(AttributeError, match="Tokeniser"):
        _ = softvq.Tokeniser


@pytest.mark.parametrize("command", ["", *GROUPS, *COMMANDS])
def test_help_explains_every_option_and_shows_examples_that_are_valid(command, capsys):
    code, out, err = run(capsys, *command.split(), "--help")
    assert code == 0 and not err and out.startswith("usage: softvq")
    examples = out.split("example:\n")[1].splitlines()
    assert examples and all(line.startswith(f"  softvq {command}") for line in examples)
    for example in examples:
        words = shlex.split(example.split(" > ")[0], comments=True)[1:]
        assert cli.command_line().parse(words) is not None
    if command in COMMANDS:
        kind = cli.COMMANDS[command].options
        said = field_help(kind)
        for field in fields(kind):
            text = said[field.name]
            assert text[0].isupper() or text[0] in "'-.", text
            assert text.endswith("."), text
            assert not field.kw_only or f"--{field.name.replace('_', '-')}" in out


def test_help_names_defaults_and_choices(capsys):
    out = run(capsys, "study", "--help")[1]
    for text in ("{auto,fit,native}", "(default: softvq)", "(default: 20m)", "N,N,.."):
        assert text in out


# ---- errors ----


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """An untrained tokenizer of 32 x 32 pixels."""
    from contract import small

    from softvq import Tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    Tokenizer(small()).save_pretrained(folder)
    return folder


def test_wrong_usage(capsys):
    assert_one_line_error(run(capsys), "COMMAND", "softvq --help")
    assert_one_line_error(run(capsys, "encode", "--data", "x"), "--out", "softvq encode --help")
    assert_one_line_error(
        run(capsys, "generate", "--steps", "0", "--out", "x"), "'0' is not a whole number"
    )
    assert_one_line_error(run(capsys, "demo", "--minutes", "nan", "--out", "x"), "'nan'")


def test_missing_folder(tokenizer, tmp_path, capsys):
    missing = tmp_path / "nowhere"
    result = run(capsys, "evaluate", "reconstruction", "--tokenizer", tokenizer, "--data", missing)
    assert_one_line_error(result, missing, "no such folder")


def test_unknown_recipe_and_key(tmp_path, capsys):
    train = ["train", "tokenizer", "--out", tmp_path, "--recipe"]
    assert_one_line_error(run(capsys, *train, "tinny"), "tinny", "tiny")
    assert_one_line_error(
        run(capsys, *train, "tiny", "train.image=7"), "train.image", "did you mean 'train.images'?"
    )


def test_not_a_model_and_damaged_weights(tokenizer, tmp_path, capsys):
    evaluate = ["evaluate", "latents", "--data", "builtin", "--tokenizer", tmp_path]
    assert_one_line_error(run(capsys, *evaluate), tmp_path, "config.json")
    (tmp_path / "config.json").write_bytes((tokenizer / "config.json").read_bytes())
    whole = (tokenizer / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert_one_line_error(run(capsys, *evaluate), "model.safetensors", "not a readable")
    assert_one_line_error(
        run(capsys, "generate", "--model", tokenizer, "--out", tmp_path), "its generator too"
    )


def test_damaged_single_photo(tokenizer, tmp_path, capsys):
    photo = tmp_path / "photo.jpg"
    photo.write_text("not a photo")
    reconstruct = ["reconstruct", "--quiet", "--tokenizer", tokenizer, "--data", photo, "--out"]
    assert_one_line_error(run(capsys, *reconstruct, tmp_path), tmp_path, "a folder of its own")
    assert_one_line_error(run(capsys, *reconstruct, tmp_path / "out"), photo, "not an image")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 2, "disk full"),
        (PermissionError(errno.EACCES, "Permission denied", "here"), 2, "here: Permission denied"),
        (FileNotFoundError(errno.ENOENT, "No such file", "there"), 2, "there: No such file"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_errors_of_the_system_are_one_line(error, code, message, monkeypatch, capsys):
    def fail(args):
        raise error

    monkeypatch.setattr(commands, "demo", fail)
    result = run(capsys, "demo", "--out", "x")
    assert result[0] == code and message in result[2] and result[2].count("\n") == 1


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(args):
        raise ValueError("a bug")

    monkeypatch.setattr(commands, "demo", fail)
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["demo", "--out", "x"])


def test_closed_pipe_is_quiet():
    command = f"{sys.executable} -m softvq --help | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert done.returncode == 0 and not done.stderr


# ---- the whole road ----


@pytest.fixture(scope="module")
def probe(tmp_path_factory) -> Path:
    """An untrained probe for 32 x 32 pixels."""
    folder = tmp_path_factory.mktemp("probe")
    Probe(ProbeConfig(height=32, width=32, classes=14, channels=8)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Six photos in two classes, two of one stem, and a damaged one."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for name in ("a/1.png", "a/1.jpg", "a/2.png", "b/sub/3.png", "b/4.jpg", "b/5.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), np.uint8))
        coarse.resize((50, 40), Image.Resampling.BICUBIC).save(folder / name)
    (folder / "b" / "bad.jpg").write_text("not a photo")
    return folder


def pictures(folder: Path) -> dict[str, Image.Image]:
    return {p.relative_to(folder).as_posix(): Image.open(p) for p in folder.rglob("*.png")}


def test_encode_and_decode_give_the_reconstructions(trained, photos, tmp_path, capsys):
    tokenizer = ["--tokenizer", trained / "tokenizer"]
    code, out, err = run(
        capsys, "encode", *tokenizer, "--data", photos, "--out", tmp_path / "tokens"
    )
    assert code == 0 and "6 photos as 8 tokens of 16 numbers" in out
    assert "skipped 1 damaged photo, listed in" in err
    skipped = (tmp_path / "tokens" / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in skipped] == [str(photos / "b" / "bad.jpg")]
    assert not list((tmp_path / "tokens").glob(".photos-*"))

    assert cli.main(["decode", *map(str, tokenizer), str(tmp_path / "tokens"),
                     "--out", str(tmp_path / "decoded")]) == 0  # fmt: skip
    decoded = pictures(tmp_path / "decoded")
    assert sorted(decoded) == [
        "a/1.png", "a/1.png.png", "a/2.png", "b/4.png", "b/5.png", "b/sub/3.png"
    ]  # fmt: skip

    code, out, _ = run(
        capsys, "reconstruct", *tokenizer, "--data", photos, "--out", tmp_path / "pairs",
        "--scale", 1,
    )  # fmt: skip
    pairs = pictures(tmp_path / "pairs")
    assert code == 0 and "6 pictures" in out and sorted(pairs) == sorted(decoded)
    for name, pair in pairs.items():
        assert pair.size == (2 * 32 + 2, 32)
        rebuilt = np.asarray(pair.crop((34, 0, 66, 32))).astype(int)
        assert np.abs(rebuilt - np.asarray(decoded[name])).max() <= 1


def test_reconstruct_one_photo(trained, photos, tmp_path, capsys):
    arguments = ["--tokenizer", trained / "tokenizer", "--data", photos / "a" / "2.png"]
    code, out, _ = run(capsys, "reconstruct", *arguments, "--out", tmp_path)
    assert code == 0 and "1 picture (" in out and list(pictures(tmp_path)) == ["2.png"]


def test_decode_refuses_names_outside_the_folder(tmp_path):
    for name in ("../evil.jpg", "/evil.jpg"):
        with pytest.raises(cli.UserError, match="outside"):
            images.png_paths([name], str(tmp_path))


def test_evaluate_reconstruction(trained, tmp_path, capsys):
    data = ["--tokenizer", trained / "tokenizer", "--data", "builtin"]
    arguments = ["evaluate", "reconstruction", *data]
    code, out, _ = run(capsys, *arguments, "--json")
    result = json.loads(out)
    assert code == 0 and result["images"] == 210 and result["floats_per_image"] == 128
    assert 5 < result["psnr_db"] < 40 and -1 < result["ssim"] < 1
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and f"psnr_db                {result['psnr_db']}" in out
    left = np.zeros((32, 32), np.uint8)
    left[:, :16] = 1
    name = find_photos("builtin", "val").names[0]
    path = tmp_path / "masks" / Path(name).with_suffix(".png")
    path.parent.mkdir(parents=True)
    Image.fromarray(left).save(path)
    code, out, _ = run(capsys, *arguments, "--json", "--masks", tmp_path / "masks")
    inside = json.loads(out)
    assert code == 0 and inside["images_inside"] == 1 and inside["psnr_db"] == result["psnr_db"]
    assert 5 < inside["psnr_inside_db"] < 40 and -1 < inside["ssim_inside"] < 1
    code, _, err = run(capsys, *arguments, "--masks", tmp_path)
    assert code == 2 and f"{tmp_path}: no mask for any photo" in err


@pytest.mark.filterwarnings("ignore:Frechet distance of")
def test_evaluate_generation(trained, probe, tmp_path, capsys):
    model = trained / "generator"
    arguments = ["evaluate", "generation", "--model", model, "--features", probe, "--steps", 2]
    code, out, _ = run(capsys, *arguments, "--data", "builtin", "--json")
    result = json.loads(out)
    assert code == 0 and result["images"] == 210 and "32x32" in result["features"]
    assert result["gfd"] > 0 and 0 <= result["precision"] <= 1 and 0 <= result["coverage"] <= 1
    reference = tmp_path / "reference.npz"
    statistics = ["evaluate", "statistics", "--data", "builtin", "--features", probe]
    tokenizer = ["--tokenizer", trained / "tokenizer"]
    code, out, _ = run(capsys, *statistics, *tokenizer, "--out", reference)
    assert code == 0 and "210 photos" in out
    against = ["--reference", reference, "--images", 28, "--json"]
    code, out, _ = run(capsys, *arguments, *against)
    assert code == 0 and json.loads(out)["gfd"] > 0


def test_statistics_replace_no_file(tokenizer, photos, tmp_path, capsys):
    command = ["evaluate", "statistics", "--data", photos, "--tokenizer", tokenizer, "--out"]
    moments = np.random.default_rng(0).normal(size=(20, 3))
    theirs, ours = tmp_path / "theirs.npz", tmp_path / "ours.npz"
    np.savez(theirs, mu=moments.mean(0), sigma=np.cov(moments.T))  # as published
    save_statistics(ours, {"pool": Statistics().add(moments)}, "eye")
    (tmp_path / "notes.txt").write_text("theirs")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for more in ([], ["--overwrite"]):
        for name in (theirs, tmp_path / "notes.txt"):
            result = run(capsys, *command, name, *more)
            assert_one_line_error(result, name, "softvq did not write it")
    assert_one_line_error(run(capsys, *command, ours), ours, "--overwrite")
    assert_one_line_error(run(capsys, *command, tmp_path), tmp_path, "is a folder")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert is_ours(ours) and not is_ours(theirs)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_network_that_overflows_gets_no_figure(part, tokenizer, photos, tmp_path, capsys):
    network = Tokenizer.from_pretrained(tokenizer)
    for weights in getattr(network, part).parameters():
        weights.data.fill_(1e30)  # finite, so that it is opened
    network.save_pretrained(tmp_path)
    command = ["evaluate", "reconstruction", "--data", photos, "--split", "all"]
    code, out, err = run(capsys, *command, "--tokenizer", tmp_path)
    assert (code, out) == (2, "") and f"the {part} gave values that are not finite" in err
    noise = noise_store(8, (32, 32), 1.0, ["a", "b"])
    with pytest.raises(UserError, match=f"the {part} gave values that are not finite"):
        evaluate_latents(network, noise, noise)


def test_a_generator_that_comes_alone_draws_with_a_tokenizer(tokenizer, tmp_path, capsys):
    shape = SiTConfig(tokens=8, channels=16, num_classes=2, width=32, depth=1, heads=2)
    SiT(shape).save_pretrained(tmp_path / "generator")
    draw = ["generate", "--model", tmp_path / "generator", "--steps", 1, "--labels", "1,0"]
    code, out, _ = run(capsys, *draw, "--tokenizer", tokenizer, "--out", tmp_path / "out")
    assert code == 0 and out.startswith("2 pictures and grid.png")
    assert len(pictures(tmp_path / "out")) == 3
    assert_one_line_error(run(capsys, *draw, "--out", tmp_path / "other"), tmp_path / "generator")


def test_a_warning_is_one_line(trained, probe, photos):
    """Of six photos on more dimensions. What a library warns of keeps Python's form."""
    command = ["evaluate", "reconstruction", "--data", photos, "--split", "all"]
    command += ["--tokenizer", trained / "tokenizer", "--features", probe]
    code = "import sys, warnings; from softvq import cli; cli.main(sys.argv[1:]); "
    code += "warnings.warn('of a library')"
    ran = subprocess.run(
        [sys.executable, "-c", code, *map(str, command)], capture_output=True, text=True, check=True
    )
    lines = [line for line in ran.stderr.splitlines() if "arning" in line]
    assert len(lines) == 2 and "rfd" in ran.stdout
    assert lines[0].startswith("softvq: warning: Frechet distance of 6 images on ")
    assert lines[1] == "<string>:1: UserWarning: of a library"
    assert "warnings.warn" not in ran.stderr


def test_evaluate_latents(trained, tmp_path, capsys):
    data = ["--tokenizer", trained / "tokenizer", "--data", tiles(tmp_path)[0]]
    code, out, _ = run(capsys, "evaluate", "latents", *data, "--json")
    result = json.loads(out)
    assert code == 0 and len(result["token_contributions_db"]) == result["tokens"]
    for share in ("linear_probe_accuracy", "knn_accuracy", "codebook_usage"):
        assert 0 < result[share] <= 1
    assert 1 <= result["effective_rank"] <= 128


def test_generate(trained, tmp_path, capsys):
    arguments = ["generate", "--model", trained / "generator", "--steps", 2, "--out"]
    code, out, _ = run(capsys, *arguments, tmp_path / "some", "--labels", "coffee, 3")
    assert code == 0 and "2 pictures" in out
    assert sorted(pictures(tmp_path / "some")) == [
        "00000-coffee.png", "00001-chelsea.png", "grid.png"
    ]  # fmt: skip
    code, out, _ = run(capsys, *arguments, tmp_path / "all", "--per-class", 2)
    assert code == 0 and len(pictures(tmp_path / "all")) == 2 * 14 + 1
    assert_one_line_error(
        run(capsys, *arguments, tmp_path / "none", "--labels", "cofee"), "cofee", "coffee"
    )


def test_repeating_a_finished_run_changes_nothing(trained, tmp_path):
    run = tmp_path / "tokenizer"
    shutil.copytree(trained / "tokenizer", run)
    before = (run / "model.safetensors").read_bytes()
    assert train_tokenizer(run) == 0
    assert (run / "model.safetensors").read_bytes() == before
