"""Sampling at scale: the file, its blocks and resume, and the same bytes from any processes."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_pipeline import CLASSES, make

from softvq import cli
from softvq import generate as scale
from softvq.errors import SoftVQWarning, UserError
from softvq.fingerprint import fingerprint
from softvq.generate import (
    Request,
    ask,
    choose_labels,
    decode_tokens,
    generate,
    generate_folder,
)
from softvq.io import PARTIAL
from softvq.npz import NpzImages
from softvq.tokenizer import Tokenizer
from softvq.tokens import read_tokens

ROOT = Path(__file__).parent.parent
PICTURES = np.random.default_rng(0).integers(0, 256, (10, 5, 7, 3), np.uint8)
LABELS = np.arange(10) % 4
TWO = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]


def images(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as file:
        return file["arr_0"]


# ---- the file ----


def opened(path: Path, overwrite: bool = False, **settings) -> NpzImages:
    wanted = {"seed": 1, "interval": (0, 1)} | settings
    return NpzImages(path, PICTURES.shape, 4, wanted, LABELS, overwrite)


def fill(file: NpzImages, blocks) -> NpzImages:
    file.begin()
    for block in blocks:
        place = file.blocks[block]
        file.write(block, PICTURES[place.start : place.stop])
    return file


def test_the_file_is_what_numpy_and_zip_read(tmp_path):
    path = tmp_path / "new" / "samples.npz"
    fill(opened(path), [2, 0, 1]).seal()
    with np.load(path, allow_pickle=False) as file:
        assert file.files == ["arr_0", "arr_1"]
        assert file["arr_0"].dtype == np.uint8 and np.array_equal(file["arr_0"], PICTURES)
        assert file["arr_1"].dtype == np.int64 and np.array_equal(file["arr_1"], LABELS)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None  # reads all, and compares the checksums
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
    # As numpy writes the same arrays, but for the archive's own marks.
    saved = io.BytesIO()
    np.savez(saved, PICTURES, LABELS.astype(np.int64))
    with zipfile.ZipFile(path) as ours, zipfile.ZipFile(saved) as theirs:
        assert all(ours.read(name) == theirs.read(name) for name in ("arr_0.npy", "arr_1.npy"))
    assert os.listdir(path.parent) == ["samples.npz"]


def test_blocks_in_any_order_and_interrupted_give_the_same_bytes(tmp_path, monkeypatch):
    fill(opened(tmp_path / "a.npz"), [0, 1, 2]).seal()
    first = fill(opened(tmp_path / "b.npz"), [2])
    assert first.missing() == [0, 1] and first.images_done() == 2
    first.release()
    with monkeypatch.context() as patch:  # killed when the seal was complete but for its name
        patch.setattr(os, "replace", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fill(opened(tmp_path / "b.npz"), [1, 0]).seal()
    again = opened(tmp_path / "b.npz")
    assert not again.begin() and again.missing() == []
    again.seal()
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert opened(tmp_path / "b.npz").begin()  # finished


def test_a_block_of_another_shape_is_a_bug(tmp_path):
    file = fill(opened(tmp_path / "a.npz"), [])
    for wrong in (PICTURES[:3], PICTURES[:4].astype(np.int16), PICTURES[:4, :, :, :1]):
        with pytest.raises(ValueError, match="block 0 is uint8"):
            file.write(0, wrong)


def test_a_killed_preparation_does_not_count(tmp_path):
    file = fill(opened(tmp_path / "a.npz"), [0])
    (file.folder / "settings.json").unlink()
    (file.folder / "array").write_bytes(b"half")
    file.release()
    file = opened(tmp_path / "a.npz")
    assert not file.begin() and file.missing() == [0, 1, 2]
    fill(file, [0, 1, 2]).seal()
    assert np.array_equal(images(tmp_path / "a.npz"), PICTURES)


def test_other_settings_are_refused_once_there_are_images(tmp_path):
    fill(opened(tmp_path / "a.npz"), [])
    file = fill(opened(tmp_path / "a.npz", seed=2, steps=3), [0])  # nothing was lost
    file.release()
    with pytest.raises(UserError, match=r"another seed, steps.*--overwrite"):
        opened(tmp_path / "a.npz").begin()
    fill(opened(tmp_path / "a.npz", seed=2, steps=3), [1, 2]).seal()
    with pytest.raises(UserError, match=r"another seed, steps.*--overwrite"):
        opened(tmp_path / "a.npz").begin()
    for name in ("theirs.npz", "link.npz", "folder.npz"):
        theirs = tmp_path / name
        if name == "theirs.npz":
            np.savez(theirs, PICTURES)
        elif name == "link.npz":
            theirs.symlink_to("nowhere")
        else:
            theirs.mkdir()
        for overwrite in (False, True):
            with pytest.raises(UserError, match="not of softvq"):
                opened(theirs, overwrite).begin()
    assert np.array_equal(images(tmp_path / "theirs.npz"), PICTURES)


def test_overwrite_replaces_a_finished_file_at_the_end_and_goes_on_when_stopped(tmp_path):
    path = tmp_path / "a.npz"
    fill(opened(path, seed=2), [0, 1, 2]).seal()
    old = path.read_bytes()
    fill(opened(path, overwrite=True), [1]).release()
    assert path.read_bytes() == old  # until the new one is whole
    file = opened(path, overwrite=True)
    assert not file.begin() and file.missing() == [0, 2]
    file.release()
    fill(opened(path, overwrite=True), [0, 2]).seal()
    assert opened(path).begin() and path.read_bytes() != old
    assert opened(path, overwrite=True).begin()  # finished: nothing is drawn again


def test_two_runs_at_once_are_refused(tmp_path):
    held = fill(opened(tmp_path / "a.npz"), [])
    with pytest.raises(UserError, match="another process is writing it"):
        scale.write_images(opened(tmp_path / "a.npz"), lambda block: PICTURES)
    other = opened(tmp_path / "a.npz")
    assert not other.begin(lock=False) and other.missing() == [0, 1, 2]  # one of the same run
    held.release()


def test_a_full_disk_is_said_before_anything_is_drawn(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2000))
    with pytest.raises(UserError, match=r"takes 0\.00 GB, and 0\.00 GB are free"):
        opened(tmp_path / "a.npz").begin(beside=1000)
    assert os.listdir(tmp_path) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4000))
    assert not opened(tmp_path / "a.npz").begin(beside=1000)


# ---- labels ----


def test_labels():
    assert choose_labels([0, 1, 2], 7) == [0, 1, 2, 0, 1, 2, 0]
    assert choose_labels(["cat", 0], 3) == ["cat", 0, "cat"]
    drawn = choose_labels(range(10), 20_000, "sampled", seed=3)
    assert choose_labels(range(10), 300, "sampled", seed=3) == drawn[:300]
    assert choose_labels(range(10), 300, "sampled", seed=4) != drawn[:300]
    counts = np.bincount(drawn)
    assert ((counts - 2000) ** 2 / 2000).sum() < 27.9  # chi-squared of 9 degrees, 99.9%


# ---- drawing ----

SOME = {"labels": choose_labels(CLASSES, 11), "steps": 3, "seed": 5, "progress": False}


@pytest.fixture
def pipeline():
    return make()


def test_the_images_are_the_pipelines(pipeline, tmp_path):
    assert generate(pipeline, tmp_path / "a.npz", **SOME, batch=2, decode_batch=3)
    expected = pipeline(SOME["labels"], steps=3, seed=5)
    assert np.array_equal(images(tmp_path / "a.npz"), np.stack(expected))
    with np.load(tmp_path / "a.npz") as file:
        assert file["arr_1"].tolist() == [i % 3 for i in range(11)]


def test_network_and_decoder_have_batches_of_their_own(pipeline, tmp_path):
    drawn, decoded = [], []
    pipeline.precision = "exact"  # which repeats no image to fill a block
    pipeline.generator.register_forward_hook(lambda m, a, out: drawn.append(len(out)))
    pipeline.tokenizer.decoder.register_forward_hook(lambda m, a, out: decoded.append(len(out)))
    options = SOME | {"steps": 1, "guidance": 1.0}
    assert generate(pipeline, tmp_path / "a.npz", **options, batch=2, decode_batch=5)
    assert drawn == [2, 2, 2, 2, 2, 1] and decoded == [5, 1, 5]
    drawn.clear(), decoded.clear()
    assert generate(pipeline, tmp_path / "b.npz", **options, batch=6, decode_batch=4)
    assert drawn == [6, 5] and decoded == [4, 2, 4, 1]


def test_unconditional(tmp_path):
    assert generate(make([]), tmp_path / "a.npz", count=5, steps=2, progress=False)
    with np.load(tmp_path / "a.npz") as file:
        assert file.files == ["arr_0"] and file["arr_0"].shape == (5, 32, 32, 3)


def test_interrupted_and_repeated(pipeline, tmp_path, monkeypatch, capsys):
    pipeline.precision = "exact"  # which repeats no image to fill a block
    assert generate(pipeline, tmp_path / "whole.npz", **SOME, batch=2, decode_batch=2)
    write = NpzImages.write
    written = []

    def interrupted(file, block, pictures):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(block)
        write(file, block, pictures)

    with monkeypatch.context() as patch:
        patch.setattr(NpzImages, "write", interrupted)
        assert not generate(pipeline, tmp_path / "a.npz", **SOME, batch=2, decode_batch=2)
    said = capsys.readouterr().err
    assert said == "stopped at 6 of 11 images; the same command goes on from here\n"
    with pytest.raises(UserError, match=r"holds other images \(another seed\)"):
        generate(pipeline, tmp_path / "a.npz", **SOME | {"seed": 6}, batch=2, decode_batch=2)
    drawn = []
    pipeline.tokenizer.decoder.register_forward_hook(lambda m, a, out: drawn.append(len(out)))
    assert generate(pipeline, tmp_path / "a.npz", **SOME, batch=2, decode_batch=2)
    assert sum(drawn) == 5
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert generate(pipeline, tmp_path / "a.npz", **SOME, batch=2, decode_batch=2)
    assert sum(drawn) == 5


def test_the_settings_hold_all_that_decides_the_images(pipeline, tmp_path):
    assert generate(pipeline, tmp_path / "a.npz", **SOME)
    for change in ({"steps": 4}, {"guidance": 2.0}, {"sampler": "heun"}, {"interval": (0, 0.7)},
                   {"labels": [0] * 11}, {"labels": [0]}, {"batch": 8}):  # fmt: skip
        with pytest.raises(UserError, match="holds other images"):
            generate(pipeline, tmp_path / "a.npz", **SOME | change)
    pipeline.precision = "fp32"
    with pytest.raises(UserError, match=r"\(another precision\)"):
        generate(pipeline, tmp_path / "a.npz", **SOME)
    pipeline.precision = "auto"
    for part in (pipeline.tokenizer.decoder, pipeline.generator):
        parameter = next(part.parameters()).data
        parameter += 0.1
        with pytest.raises(UserError, match=r"another (tokenizer|generator)"):
            generate(pipeline, tmp_path / "a.npz", **SOME)
        parameter -= 0.1


@pytest.mark.parametrize("part", ["generator", "decoder"])
def test_what_is_not_finite_is_said_and_leaves_nothing(pipeline, tmp_path, part):
    module = pipeline.generator if part == "generator" else pipeline.tokenizer.decoder
    for parameter in module.parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(UserError, match=f"the {part} .*finite"):
        generate(pipeline, tmp_path / "a.npz", **SOME)
    assert os.listdir(tmp_path) == []


def test_low_precision_stays_near(pipeline, tmp_path):
    kinds = ("exact", "auto", "fp32", "bf16")
    for precision in kinds:
        pipeline.precision = precision
        assert generate(pipeline, tmp_path / f"{precision}.npz", **SOME)
    exact, *others = (images(tmp_path / f"{p}.npz").astype(int) for p in kinds)
    errors = [np.abs(other - exact) for other in others]
    for error in errors[:2]:
        assert error.max() <= 1 and error.mean() < 1e-3
    assert 0 < errors[2].mean() < 10


# ---- kept latents ----


def test_kept_latents_are_rendered_by_another_decoder(pipeline, tmp_path):
    kept = tmp_path / "latents"
    assert generate(pipeline, tmp_path / "a.npz", **SOME, batch=4, decode_batch=4, latents=kept)
    tokenizer = pipeline.tokenizer
    tokens = read_tokens(kept, fingerprint(tokenizer))
    assert tokens.labels.tolist() == [i % 3 for i in range(11)] and tokens.classes == CLASSES
    assert tokens.names[:4] == ["bird/000000.png", "cat/000001.png", "dog/000002.png",
                                "bird/000003.png"]  # fmt: skip
    drawn = pipeline.generate_latents(SOME["labels"], steps=3, seed=5)
    torch.testing.assert_close(
        tokenizer.denormalize(tokens.latents), drawn.float(), atol=1e-5, rtol=1e-5
    )
    assert decode_tokens(tokenizer, tokens, tmp_path / "same.npz", batch=3, progress=False)
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "same.npz") as b:
        assert np.array_equal(a["arr_1"], b["arr_1"])
        difference = np.abs(a["arr_0"].astype(int) - b["arr_0"])
        assert difference.max() <= 1 and difference.mean() < 1e-3  # float32 and float64

    other = Tokenizer(tokenizer.config).eval()
    other.load_state_dict(tokenizer.state_dict())
    with torch.no_grad():
        other.decoder.to_pixels.weight.mul_(0.5)
        other.decoder.to_pixels.bias.mul_(0.5)
    tokens = read_tokens(kept, fingerprint(other))
    assert decode_tokens(other, tokens, tmp_path / "other.npz", progress=False)
    raw = np.clip((images(tmp_path / "same.npz") / 127.5 - 1) * 0.5, -1, 1)
    inside = (images(tmp_path / "same.npz") > 0) & (images(tmp_path / "same.npz") < 255)
    error = np.abs((raw + 1) * 127.5 - images(tmp_path / "other.npz"))
    assert inside.mean() > 0.3 and error[inside].max() <= 1
    with pytest.raises(UserError, match=r"another tokenizer"):
        decode_tokens(tokenizer, tokens, tmp_path / "other.npz", progress=False)
    with torch.no_grad():
        other.to_latent.weight[0, 0] += 1
    with pytest.raises(UserError, match="tokens of another tokenizer"):
        read_tokens(kept, fingerprint(other))


def test_a_folder_of_other_latents_is_refused(pipeline, tmp_path):
    kept = tmp_path / "latents"
    assert generate(pipeline, tmp_path / "a.npz", **SOME, latents=kept)
    with pytest.raises(UserError, match="holds other tokens"):
        generate(pipeline, tmp_path / "b.npz", **SOME | {"seed": 6}, latents=kept)
    with pytest.raises(UserError, match=r"another latents"):
        generate(pipeline, tmp_path / "a.npz", **SOME)


@pytest.mark.parametrize("damage", ["empty", "short", "long", "odd", "array", "head"])
def test_a_record_of_what_is_done_that_does_not_fit_means_start_again(tmp_path, damage):
    file = fill(opened(tmp_path / "a.npz"), [0, 2])
    file.release()
    done = {"empty": b"", "short": b"\1\0", "long": b"\1\0\1\1", "odd": b"\1\0\7"}
    if damage in done:
        file.done.write_bytes(done[damage])
    elif damage == "array":
        os.truncate(file.array, file.size - 1)
    else:
        with open(file.array, "r+b") as array:
            array.write(b"\0" * 8)
    again = opened(tmp_path / "a.npz")
    with pytest.warns(SoftVQWarning, match="drawn again from the first"):
        assert not again.begin()
    assert again.missing() == [0, 1, 2]
    fill(again, [0, 1, 2]).seal()
    assert np.array_equal(images(tmp_path / "a.npz"), PICTURES)


def test_a_finished_file_that_was_damaged_is_said(tmp_path):
    fill(opened(tmp_path / "a.npz"), [0, 1, 2]).seal()
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npz: damaged since it was written.*delete it"):
        opened(tmp_path / "a.npz").begin()


# ---- folders and requests ----


def test_two_sets_in_one_folder_are_never_mixed(pipeline, tmp_path):
    def draw(request, **options):
        return generate_folder(pipeline, tmp_path / "out", request, 3, 2, steps=2, **options)

    def found():
        return sorted(path.name for path in (tmp_path / "out").glob("*.png"))

    three = ask(pipeline, ["dog", "0"], 3)
    assert draw(three) == 3
    assert found() == ["00000-dog.png", "00001-bird.png", "00002-dog.png", "grid.png"]
    before = {name: (tmp_path / "out" / name).read_bytes() for name in found()}
    assert draw(three) == 3
    assert before == {name: (tmp_path / "out" / name).read_bytes() for name in found()}
    two = ask(pipeline, ["0"], 2)
    with pytest.raises(UserError, match=r"another count, labels.*--overwrite"):
        draw(two)
    assert draw(two, overwrite=True) == 2
    assert found() == ["00000-bird.png", "00001-bird.png", "grid.png"]
    # Neither depends on the batch: the first two of them are drawn at once above.
    alone = pipeline.decode(pipeline.generate_latents([0], start=1, seed=3, steps=2))
    assert np.array_equal(alone[0], Image.open(tmp_path / "out" / "00001-bird.png"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "grid.png").write_text("mine")
    with pytest.raises(UserError, match="softvq did not write"):
        generate_folder(pipeline, tmp_path / "mine", two, steps=2)
    assert (tmp_path / "mine" / "grid.png").read_text() == "mine"


def test_what_is_asked_for(pipeline):
    assert ask(pipeline) == Request([0] * 4 + [1] * 4 + [2] * 4, 12, 4)
    assert ask(pipeline, per_class=1) == Request([0, 1, 2], 3, 1)
    assert ask(pipeline, count=5) == Request([0, 1, 2, 0, 1], 5, 8)
    assert ask(pipeline, ["dog", "0"]) == Request(["dog", 0], 2, 8)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"labels": ["²"]}, "unknown label '²'"),
        ({"labels": ["-1"]}, "unknown label '-1'"),
        ({"labels": ["9" * 30]}, "unknown label 9999"),
        ({"labels": [""]}, "unknown label ''"),
        ({"seed": -1}, "seed -1: give 0 or more"),
        ({"seed": 1 << 64}, "give 0 or more"),
        ({"count": 10**11, "npz": True}, "takes 307,200.00 GB, and .* free"),
        ({"count": 10**14}, "free"),
        ({"per_class": 10**14}, "free"),
    ],
)
def test_what_cannot_be_is_refused_at_once(pipeline, tmp_path, arguments, says):
    with pytest.raises(UserError, match=says):
        ask(pipeline, **arguments, out=tmp_path / "out")


def test_numbers_out_of_range_are_refused_before_a_file_is_made(pipeline, tmp_path):
    for options in ({"seed": -1}, {"steps": 10**12}, {"steps": 0}):
        with pytest.raises(UserError, match="give"):
            generate(pipeline, tmp_path / "a.npz", ["dog"], **options)
        with pytest.raises(UserError, match="give"):
            generate_folder(pipeline, tmp_path / "a", Request(["dog"], 1), **options)
    with pytest.raises(UserError, match="give 0 or more"):
        choose_labels(["dog"], 2, "sampled", -1)
    assert os.listdir(tmp_path) == []


# ---- processes ----


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make().save_pretrained(folder)
    return folder


def drawing(model: Path, path: Path, count: int) -> list[str]:
    """The command of ``count`` images in ``path``."""
    return [
        "generate", "--model", str(model), "--count", str(count), "--npz", str(path), "--labels",
        "sampled", "--steps", "2", "--batch", "8", "--latents", str(path.with_suffix("")),
    ]  # fmt: skip


def start(model: Path, path: Path, count: int, *launcher: str) -> subprocess.Popen:
    """That command in processes of its own."""
    command = [sys.executable, *launcher, "-m", "softvq", *drawing(model, path, count)]
    log = path.with_suffix(".log").open("a")
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True
    )


def finish(process: subprocess.Popen, path: Path) -> bytes:
    assert process.wait(timeout=300) == 0, path.with_suffix(".log").read_text()[-4000:]
    return path.read_bytes()


def kill_at(process: subprocess.Popen, path: Path, blocks: int) -> int:
    """Kill every process of a command when so many blocks are done, and return how many are."""
    done = path.with_name(path.name + ".partial") / "done"

    def written() -> int:
        return sum(done.read_bytes()) if done.is_file() else 0

    while written() < blocks and process.poll() is None:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return written()


def kept(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.with_suffix("").iterdir()}


def test_two_processes_and_a_killed_run_give_the_file_of_one(model, tmp_path):
    count = 160
    one, two, killed = (tmp_path / f"{name}.npz" for name in ("one", "two", "killed"))
    assert cli.main(drawing(model, one, count)) == 0
    both = start(model, two, count, *TWO)
    at = kill_at(start(model, killed, count), killed, 3)
    assert 3 <= at < 20 and not killed.exists()
    # As a process leaves it that is killed in the middle of a file.
    (killed.with_suffix("") / f".0123456789abcdef{PARTIAL}").write_bytes(b"half")
    assert cli.main(drawing(model, killed, count)) == 0
    assert killed.read_bytes() == one.read_bytes() == finish(both, two)
    assert kept(two) == kept(killed) == kept(one)
    assert images(one).shape == (count, 32, 32, 3)


@pytest.mark.slow
def test_2000_images(model, tmp_path):
    count = 2000
    one, two, killed = (tmp_path / f"{name}.npz" for name in ("one", "two", "killed"))
    whole = finish(start(model, one, count), one)
    assert finish(start(model, two, count, *TWO), two) == whole
    # Killed half way in two processes, again later in one, and finished in two.
    assert 125 <= kill_at(start(model, killed, count, *TWO), killed, 125) < 250
    assert 150 <= kill_at(start(model, killed, count), killed, 150) < 250
    assert finish(start(model, killed, count, *TWO), killed) == whole
    assert kept(two) == kept(killed) == kept(one)
    assert images(one).shape == (count, 32, 32, 3)
    assert len(np.unique(images(one).reshape(count, -1), axis=0)) == count


# ---- the command ----


def test_command(model, tmp_path, capsys, monkeypatch):
    def run(*arguments) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    generate = ["generate", "--model", model, "--steps", 2, "--batch", 4]
    code, out, _ = run(*generate, "--count", 5, "--labels", "dog,0", "--npz", tmp_path / "a.npz")
    assert code == 0 and f"5 pictures in {tmp_path / 'a.npz'}" in out
    with np.load(tmp_path / "a.npz") as file:
        assert file["arr_1"].tolist() == [2, 0, 2, 0, 2]
    assert run(*generate, "--count", 5, "--labels", "dog,0", "--out", tmp_path / "png")[0] == 0
    pictures = sorted((tmp_path / "png").glob("0*.png"))
    assert [path.name for path in pictures[:2]] == ["00000-dog.png", "00001-bird.png"]
    opened = np.stack([np.asarray(Image.open(path)) for path in pictures])
    assert np.array_equal(opened, images(tmp_path / "a.npz"))

    kept = ["--npz", tmp_path / "b.npz", "--latents", tmp_path / "tokens"]
    assert run(*generate, "--per-class", 2, *kept)[0] == 0
    with np.load(tmp_path / "b.npz") as file:
        assert file["arr_1"].tolist() == [0, 0, 1, 1, 2, 2]
    decode = ["decode", tmp_path / "tokens", "--tokenizer", model]
    code, out, _ = run(*decode, "--npz", tmp_path / "c.npz")
    assert code == 0 and "6 pictures in" in out and images(tmp_path / "c.npz").shape[0] == 6
    assert run(*decode, "--out", tmp_path / "again")[0] == 0
    assert (tmp_path / "again" / "dog" / "000005.png").is_file()

    for arguments, text in (
        (["--count", 5, "--labels", "dog,0", "--npz", tmp_path / "a.npz", "--steps", 3], "steps"),
        (
            ["--count", 5, "--npz", tmp_path / "d.npz", "--temperature", 2],
            "no option 'temperature'",
        ),
        (["--count", 5, "--out", tmp_path / "d", "--latents", tmp_path / "e"], "go with --npz"),
        (["--labels", "cow", "--npz", tmp_path / "d.npz"], "unknown label 'cow'"),
        (["--count", 5], "give --out or --npz"),
    ):
        code, _, err = run(*generate, *arguments)
        assert code == 2 and text in err.splitlines()[-1], err
    monkeypatch.setattr(scale, "write_images", lambda *a: False)  # Ctrl-C
    assert run(*generate, "--count", 5, "--npz", tmp_path / "d.npz")[0] == 130
