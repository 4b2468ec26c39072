"""softvq encode on archives: from shards, on several processes, with Ray; exactly once."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from contract import small
from helpers.pictures import photos as photo_folder

from softvq import cli, encoding
from softvq.data.sharding import write_shards
from softvq.encoding import encode_folder
from softvq.engines import RayEngine
from softvq.errors import UserError
from softvq.fingerprint import fingerprint
from softvq.tokenizer import Tokenizer
from softvq.tokens import read_tokens

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    torch.manual_seed(0)
    model = Tokenizer(small()).eval()
    model.save_pretrained(tmp_path_factory.mktemp("models") / "tokenizer")
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return photo_folder(tmp_path_factory.mktemp("photos") / "p", 60)


def encode(tokenizer, source, out, **options) -> tuple[list[str], torch.Tensor, int]:
    """Names, sorted, their tokens, and how many photos are new."""
    _, new = encode_folder(tokenizer, source, out, progress=False, **options)
    found = read_tokens(out, fingerprint(tokenizer))
    order = sorted(range(len(found)), key=found.names.__getitem__)
    return [found.names[i] for i in order], found.latents[order], new


@pytest.fixture(autouse=True)
def files_of_eight(monkeypatch):
    monkeypatch.setattr(encoding, "ARCHIVED", 8)


def test_shards_give_the_tokens_of_the_folder(tokenizer, folder, tmp_path):
    write_shards(str(folder), tmp_path / "shards", each=7, progress=False)
    wanted, found = (encode(tokenizer, s, tmp_path / f"t{i}") for i, s in
                     enumerate((folder, tmp_path / "shards")))  # fmt: skip
    assert found[0] == wanted[0] and found[2] == wanted[2] == 60
    torch.testing.assert_close(found[1], wanted[1], atol=1e-5, rtol=1e-5)
    assert encode(tokenizer, tmp_path / "shards", tmp_path / "t1")[2] == 0


def test_damaged_photos_are_left_out_whoever_finds_them(tokenizer, tmp_path):
    """In the middle of a file, a whole file of them, and of a shard that is gone."""
    source = photo_folder(tmp_path / "p", 20)
    bad = [source / "class0" / f"{i}.jpg" for i in ("00x", *(f"zz{k:02d}" for k in range(12)))]
    for path in bad:
        path.write_bytes(b"no photo")
    names, latents, new = encode(tokenizer, source, tmp_path / "t")
    assert len(names) == new == 20 and len(latents) == 20
    listed = (tmp_path / "t" / "skipped.jsonl").read_text().splitlines()
    assert {json.loads(line)["path"] for line in listed} == set(map(str, bad))
    assert encode(tokenizer, source, tmp_path / "t")[2] == 0
    # A file that is gone is written again, with the same photos.
    lost = next(iter((tmp_path / "t").glob("tokens-00000*")))
    before = lost.read_bytes()
    lost.unlink()
    again = encode(tokenizer, source, tmp_path / "t")
    assert again[2] > 0 and again[0] == names and torch.equal(again[1], latents)
    assert (
        lost.read_bytes() == before
        or json.loads((tmp_path / "t" / "index.json").read_text())["count"] == 20
    )
    bad[0].unlink()  # and one more photo: the folder grows
    np.save(tmp_path / "x.npy", 0)
    (source / "class1" / "new.png").write_bytes((source / "class1" / "001.png").read_bytes())
    grown = encode(tokenizer, source, tmp_path / "t")
    assert grown[2] == 1 and len(grown[0]) == 21

    write_shards(str(photo_folder(tmp_path / "q", 30)), tmp_path / "s", each=5, progress=False)
    (tmp_path / "s" / "train-00002.tar").unlink()
    names = encode(tokenizer, tmp_path / "s", tmp_path / "u")[0]
    assert len(names) == 25
    assert "train-00002.tar is missing" in (tmp_path / "u" / "skipped.jsonl").read_text()
    only = tmp_path / "only" / "a"
    only.mkdir(parents=True)
    (only / "a.jpg").write_bytes(b"no photo")
    (only / "b.jpg").write_bytes(b"no photo")
    with pytest.raises(UserError, match="none of the 2 photos can be decoded"):
        encode(tokenizer, only.parent, tmp_path / "v")


PROGRAM = """
import json, sys
from softvq import cli, encoding
encoding.ARCHIVED = 8
for asked in json.loads(sys.argv[1]):
    assert cli.main(asked) == 0
"""


def test_two_processes_share_encoding_and_evaluation(tokenizer, folder, tmp_path, capsys):
    wanted = encode(tokenizer, folder, tmp_path / "one")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "run.py").write_text(PROGRAM)
    of = ["--tokenizer", str(tmp_path / "tokenizer"), "--data", str(folder)]
    evaluation = ["evaluate", "reconstruction", *of, "--split", "all", "--json"]
    evaluation += ["--features", "eye"]
    assert cli.main(evaluation) == 0
    alone = json.loads(capsys.readouterr().out)
    both = [["encode", *of, "--precision", "fp32", "--out", str(tmp_path / "two")], evaluation]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, tmp_path / "run.py", json.dumps(both)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("60 photos as") == 1
    names, latents, new = encode(tokenizer, folder, tmp_path / "two")
    assert (names, new) == (wanted[0], 0)
    torch.testing.assert_close(latents, wanted[1], atol=1e-5, rtol=1e-5)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    together = json.loads(line)
    assert together.keys() == alone.keys() and "rfd" in alone
    for name, value in alone.items():
        near = pytest.approx(value, rel=1e-4, abs=1e-4) if isinstance(value, float) else value
        assert together[name] == near, name


def test_ray_encodes_every_photo_once_when_a_worker_is_killed(tokenizer, folder, tmp_path):
    pytest.importorskip("ray")
    wanted = encode(tokenizer, folder, tmp_path / "one")
    killed: list[int] = []

    def kill() -> None:
        """One worker, once a file is there."""
        while not list((tmp_path / "many").glob("tokens-*")):
            time.sleep(0.01)
        found = subprocess.run(["pgrep", "-f", "ray::.*_Worker"], capture_output=True, text=True)
        for pid in map(int, found.stdout.split()[:1]):
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    names, latents, new = encode(tokenizer, folder, tmp_path / "many", engine=RayEngine(2))
    thread.join(10)
    assert killed and new == 60 and names == wanted[0]
    torch.testing.assert_close(latents, wanted[1], atol=1e-5, rtol=1e-5)
    import ray

    ray.shutdown()


def test_options_of_engines(tmp_path, capsys):
    asked = ["encode", "--data", "builtin", "--out", str(tmp_path / "t"), "--workers", "2"]
    assert cli.main(asked) == 2
    assert "--workers goes with --engine ray" in capsys.readouterr().err
