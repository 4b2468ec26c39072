"""Bad input of every kind: exit 2, one line that names the cause, and no photo touched."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.refusals import refused
from PIL import Image
from safetensors.numpy import save_file

from softvq import cli


def files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Photos, a small tokenizer with tokens of them, and everything that can be wrong with it."""
    from contract import small

    from softvq import Pipeline, SiT, SiTConfig, Tokenizer

    at = tmp_path_factory.mktemp("place")
    random = np.random.default_rng(0)
    for name in ("a/1.png", "a/2.png", "a/3.png", "b/4.png", "b/5.png", "b/6.png"):
        (at / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)).save(at / "photos" / name)
    (at / "empty").mkdir()
    (at / "file").write_text("a text")
    (at / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    (at / "list.yaml").write_text("- a\n- b\n")
    (at / "deep.yaml").write_text("[" * 1200)
    (at / "circle.yaml").write_text("base: circle.yaml")
    (at / "kind.yaml").write_text("kind: gan")
    (at / "broken").mkdir()
    (at / "broken" / "x.png").write_text("not a photo")
    (at / "only").mkdir()
    (at / "only" / "train").mkdir()
    shutil.copy(at / "photos/a/1.png", at / "only/train/1.png")
    Tokenizer(small()).save_pretrained(at / "tok")
    Tokenizer(small(nested=True)).save_pretrained(at / "nested")
    network = SiT(SiTConfig(tokens=8, channels=16, num_classes=2, width=32, depth=1, heads=2))
    Pipeline(Tokenizer(small()), network, ["tea", "coffee"]).save_pretrained(at / "pipeline")
    common = ["--tokenizer", str(at / "tok"), "--quiet"]
    encode = ["encode", "--data", str(at / "photos"), "--out", str(at / "tokens"), *common]
    assert cli.main(encode) == 0
    for name, change in CONFIGS.items():
        shutil.copytree(at / "tok", at / f"tok-{name}")
        path = at / f"tok-{name}" / "config.json"
        path.write_text(change(path.read_text()), encoding="utf-8")
    for name, change in INDEXES.items():
        shutil.copytree(at / "tokens", at / f"tokens-{name}")
        path = at / f"tokens-{name}" / "index.json"
        path.write_text(change(path.read_text()), encoding="utf-8")
    for name, (latents, names) in SHARDS.items():
        shutil.copytree(at / "tokens", at / f"tokens-{name}")
        labels = np.zeros(6, np.int64)
        shard = at / f"tokens-{name}" / "tokens-00000.safetensors"
        save_file({"latents": latents, "labels": labels}, shard, {"names": names})
    np.savez(at / "theirs.npz", mu=np.zeros(4), sigma=np.eye(4))
    np.savez(at / "ours.npz", mu=np.zeros(4), sigma=np.eye(4), features="other", count=9)
    shutil.copytree(at / "tok", at / "tok-cut")
    weights = at / "tok-cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return at


def changed(**values):
    return lambda text: json.dumps(json.loads(text) | values)


CONFIGS = {
    "text": lambda text: "not json",
    "list": lambda text: "[]",
    "deep": lambda text: "[" * 100_000,
    "kind": changed(model="Cat"),
    "key": changed(tokkens=3),
    "height-text": changed(height="64"),
    "height-null": changed(height=None),
    "height-list": changed(height=[32]),
    "height-huge": changed(height=10**9),
    "depth": changed(encoder_depth=10**9),
    "width": changed(encoder_width=1_920_000),
    "codebook": changed(codebook_size=9 * 10**9),
    "tau": changed(tau=float("nan")),
    "tau-0": changed(tau=0),
    "heads": changed(encoder_heads=0),
    "bottleneck": changed(bottleneck="softqv"),
    "channels": changed(channels=-1),
}
INDEXES = {
    "list": lambda text: "[]",
    "string": lambda text: '"x"',
    "deep": lambda text: "[" * 100_000,
    "no-height": lambda text: json.dumps(
        {k: v for k, v in json.loads(text).items() if k != "height"}
    ),
    "height-0": changed(height=0),
    "height-text": changed(height="32"),
    "height-huge": changed(height=8192 * 8192),
    "shards": changed(shards={}),
    "shards-up": changed(shards={"../x.safetensors": 6}),
    "shards-missing": changed(shards={"tokens-00007.safetensors": 6}),
    "count": changed(count=7),
    "classes": changed(classes=3),
    "tokenizer": changed(tokenizer="another"),
}
GOOD = np.zeros((6, 8, 16), np.float32)
NAMES = [f"a/{i}.png" for i in range(6)]
SHARDS = {
    "nan": (np.full_like(GOOD, np.nan), json.dumps(NAMES)),
    "channels": (GOOD[:, :, :5].copy(), json.dumps(NAMES)),
    "fewer": (GOOD[:, :3].copy(), json.dumps(NAMES)),
    "names-few": (GOOD, json.dumps(NAMES[:2])),
    "names-many": (GOOD, json.dumps(NAMES * 3)),
    "names-number": (GOOD, json.dumps([1, 2, 3, 4, 5, 6])),
    "names-text": (GOOD, "not json"),
    "names-up": (GOOD, json.dumps(["../../x.png", *NAMES[1:]])),
    "names-absolute": (GOOD, json.dumps(["/x.png", *NAMES[1:]])),
    "names-empty": (GOOD, json.dumps(["", *NAMES[1:]])),
    "names-zero": (GOOD, json.dumps(["a\0b.png", *NAMES[1:]])),
}
T, P, O = "--tokenizer {at}/tok", "--data {at}/photos", "--out {out}"  # noqa: E741
TRAIN = f"train tokenizer --recipe tiny {P} {O}"
GENERATOR = f"train generator --recipe tiny-generator {T} {P} {O}"
STATISTICS = f"evaluate statistics {T} {P}"
ROWS = [
    ("", "COMMAND is missing"),
    ("train", "COMMAND is missing"),
    ("evaluate", "COMMAND is missing"),
    ("encod --data x", 'Did you mean "encode"?'),
    ("train tokeniser", 'Did you mean "tokenizer"?'),
    ("--verbose", "--verbose"),
    # photos
    (f"encode {T} --data {{at}}/nowhere {O}", "nowhere: no such folder"),
    (f"encode {T} --data {{at}}/file {O}", "is a file"),
    (f"encode {T} --data {{at}}/empty {O}", "empty"),
    (f"encode {T} --data {{at}}/broken {O}", "can be decoded"),
    (f"encode {T} --data {{at}}/only {O}", "train/"),
    (f"reconstruct {T} --data {{at}}/file {O}", "not an image"),
    (f"reconstruct {T} --data {{at}}/nowhere {O}", "nowhere"),
    (f"evaluate reconstruction {T} --data {{at}}/nowhere", "no such folder"),
    (f"evaluate latents {T} --data {{at}}/empty", "empty"),
    ("classes {at}/nowhere", "nowhere"),
    ("info {at}/nowhere", "nowhere"),
    ("info {at}/empty", "no model"),
    # what lies where it must not
    (f"encode {T} {P} --out {{at}}/photos", "photos"),
    (f"encode {T} {P} --out {{at}}/photos/tokens", "photos"),
    (f"reconstruct {T} {P} --out {{at}}/photos", "photos"),
    (f"reconstruct {T} {P} --out {{at}}", "photos"),
    (f"train tokenizer --recipe tiny {P} --out {{at}}/photos", "photos"),
    (f"train probe {P} --out {{at}}/photos/run", "photos"),
    (f"decode {{at}}/tokens {T} --out {{at}}/photos", "did not write"),
    ("generate --model {at}/pipeline --steps 1 --out {at}/photos", "did not write"),
    (f"encode {T} {P} --out {{at}}/file", "is a file; give a folder"),
    (f"reconstruct {T} {P} --out {{at}}/file", "is a file"),
    (f"train tokenizer --recipe tiny {P} --out {{at}}/file", "is a file"),
    (f"train tokenizer --recipe tiny {P} --out {{at}}/tok", "did not write"),
    ("generate --model {at}/pipeline --npz {at}/file", "file"),
    ("generate --model {at}/pipeline --npz {at}/empty", "not of softvq; give another file"),
    ("generate --model {at}/pipeline --npz {out} --latents {at}/photos", "did not write"),
    ("generate --model {at}/pipeline --out {at}/file", "is a file; give a folder"),
    (f"decode {{at}}/tokens {T} --npz {{at}}/empty", "not of softvq; give another file"),
    (f"decode {{at}}/tokens {T} --npz {{at}}/photos/a/1.png", "not of softvq"),
    (f"{STATISTICS} --out {{at}}/photos/a/1.png", "softvq did not write it"),
    (f"{STATISTICS} --out {{at}}/photos/a/1.png --overwrite", "softvq did not write it"),
    (f"{STATISTICS} --out {{at}}/theirs.npz --overwrite", "softvq did not write it"),
    (f"{STATISTICS} --out {{at}}/ours.npz", "is there already; give another file, or --overwrite"),
    (f"{STATISTICS} --out {{at}}/photos", "is a folder; give the name of a file"),
    ("demo --out {at}/photos", "did not write"),
    ("demo --out {at}/file", "is a file; give a folder"),
    (f"study {P} --out {{at}}/file", "is a file; give a folder"),
    (f"study {P} --out {{at}}/tok", "did not write"),
    (f"decode {{at}}/tokens {T} --npz {{at}}/file", "file"),
    ("import {at}/tok {out}", "already"),
    ("import {at}/nowhere {out}", "nowhere"),
    ("export {at}/nowhere {out}", "nowhere"),
    ("export {at}/tok {at}/tok", "already"),
    ("export {at}/tok {out}", "cannot express this tokenizer"),
    ("export {at}/tok {at}/file", "is a file; give a folder"),
    ("export {at}/tok {at}/photos", "did not write"),
    ("export {at}/tokens {out}", "tokens"),
    ("info {at}/file", "file"),
    ("classes {at}/file", "file"),
    # models
    (f"encode --tokenizer {{at}}/empty {P} {O}", "config.json"),
    (f"encode --tokenizer {{at}}/nowhere {P} {O}", "nowhere"),
    (f"encode --tokenizer {{at}}/tok-cut {P} {O}", "model.safetensors"),
    (f"encode {T} --size 32 {P} {O}", "size"),
    (f"encode {T} {P} {O} --tokens 0", "--tokens"),
    (f"encode {T} {P} {O} --tokens 99", "has 8 tokens, not 99: it is not nested"),
    (f"encode --tokenizer {{at}}/nested {P} {O} --tokens 99", "1 to 8 tokens, not 99"),
    (f"reconstruct {T} {P} {O} --tokens 4", "has 8 tokens, not 4: it is not nested"),
    (f"encode {T} {P} {O} --device tpu", "--device"),
    (f"encode {T} {P} {O} --split test", "--split"),
    (f"encode {T} {P} {O} --batch 0", "--batch"),
    (f"reconstruct {T} {P} {O} --scale -1", "--scale"),
    (f"encode {T} {P}", "--out"),
    (f"encode {T} {O}", "--data"),
    (f"encode {T} {P} {O} {O}", "--out"),
    (f"encode {T} {P} {O} more", "more"),
    *[(f"encode --tokenizer {{at}}/tok-{name} {P} {O}", f"tok-{name}") for name in CONFIGS],
    ("generate --model {at}/tok {o}", "tok"),
    ("generate --model {at}/empty {o}", "empty"),
    ("generate --model {at}/pipeline --labels cofee {o}", "cofee"),
    ("generate --model {at}/pipeline --labels ² {o}", "²"),
    ("generate --model {at}/pipeline --labels 10 {o}", "10"),
    ("generate --model {at}/pipeline --sampler eule {o}", "eule"),
    ("generate --model {at}/pipeline --steps 1000000000 {o}", "steps"),
    ("generate --model {at}/pipeline --count 2000000000 {o}", "free"),
    ("generate --count 2 --per-class 2 {o}", "exclude each other"),
    ("generate", "give --out or --npz"),
    ("generate --npz {out} {o}", "exclude each other"),
    ("generate --latents x {o}", "go with --npz"),
    ("generate --interval 1 0 {o}", "interval"),
    ("generate --interval 0 {o}", "--interval"),
    (f"evaluate generation {P}", "too few to measure; give"),
    ("evaluate generation --features shipped --images 0 --reference {at}/ours.npz", "--images"),
    ("evaluate generation --features shipped --reference {at}/ours.npz", "give the --features"),
    (f"evaluate statistics {T} {P} {O} --features {{at}}/file", "not a file of weights alone"),
    ("evaluate generation --features shipped", "--data or --reference"),
    ("evaluate generation --features shipped --reference {at}/file", "file"),
    ("evaluate generation --features shipped --reference {at}/nowhere", "nowhere"),
    (f"evaluate reconstruction {T} {P} --features {{at}}/empty", "empty"),
    (f"evaluate reconstruction {T} {P} --lpips {{at}}/nowhere", "nowhere"),
    (f"evaluate reconstruction {T} {P} --masks {{at}}/empty", "empty"),
    ("cost", "RECIPE"),
    ("cost nothing", "nothing"),
    ("cost probe", "neither a tokenizer nor a generator"),
    ("cost small --price-per-kwh 1", "goes with --watts"),
    ("cost small --generator nothing", "nothing"),
    # tokens
    (f"decode {{at}}/empty {T} {O}", "index.json"),
    (f"decode {{at}}/nowhere {T} {O}", "index.json"),
    (f"decode {{at}}/tokens {O}", "another tokenizer"),
    *[(f"decode {{at}}/tokens-{name} {T} {O}", "") for name in (*INDEXES, *SHARDS)],
    # recipes
    ("recipes smal", "no such recipe"),
    ("recipes {at}/binary.yaml", "text"),
    (f"train tokenizer --recipe tinny {P} {O}", "no such recipe file"),
    (f"train tokenizer --recipe tiny-generator {P} {O}", "softvq train generator"),
    (f"train generator --recipe tiny {P} {O}", "softvq train tokenizer"),
    (f"train probe --recipe small {P} {O}", "softvq train tokenizer"),
    *[
        (f"train tokenizer --recipe {{at}}/{name}.yaml {P} {O}", f"{name}.yaml")
        for name in ("binary", "list", "deep", "circle", "kind", "nowhere")
    ],
    *[
        (f"{TRAIN} {key}={value}", key)
        for key, values in {
            "train.lr": ("-1", "nan", "inf", "x", "[1]", "null", "${{nope}}", "1e9"),
            "train.images": ("0", "-5", "1.5", "many"),
            "train.batch": ("0", "-1", "1e12"),
            "train.seed": ("-1", "99999999999999", "a"),
            "train.weight_decay": ("-1", "nan"),
            "train.warmup": ("-5000",),
            "train.ema_halflife": ("-10",),
            "train.precision": ("fp16",),
            "train.optimizer": ("sgd",),
            "train.schedule": ("step",),
            "train.clip": ("0",),
            "data.workers": ("-1",),
            "data.margin": ("nan", "inf", "0.5"),
            "data.fit": ("squash",),
            "data.flip": ("maybe",),
            "objective.l2": ("-1", "nan"),
            "adversary.loss": ("wasserstein",),
            "adversary.discriminator": ("gan",),
            "alignment.scheme": ("all",),
            "alignment.hidden": ("0",),
            "objective.whole": ("2", "nan"),
            "objective.prefix": ("x",),
            "objective.lpips": ("1",),
            "trainable": ("encoder", "decoder"),
            "lora_rank": ("-1",),
            "train.image": ("7",),
        }.items()
        for value in values
    ],
    *[
        (f"{TRAIN} model.{key}={value}", key)
        for key, value in (
            ("tau", "0"),
            ("tau", "nan"),
            ("encoder_heads", "0"),
            ("encoder_width", "0"),
            ("encoder_width", "-4"),
            ("encoder_depth", "0"),
            ("tokens", "0"),
            ("tokens", "100000000"),
            ("bottleneck", "softqv"),
            ("stem", "hybrid"),
            ("network", "cmm"),
            ("rope", "axail"),
            ("patch", "7"),
        )
    ],
    (f"{TRAIN} objective.lpips=1 objective.lpips_vgg={{at}}/nowhere", "nowhere: no such file"),
    (f"{TRAIN} model.nested=true model.network=cnn", "nested=false"),
    (f"{TRAIN} train", "key.subkey=value"),
    (f"{TRAIN} =3", "key.subkey=value"),
    (f"{TRAIN} train=3", "train=3: is a section; give one of its keys a value"),
    (f"{TRAIN} train.lr={{{{", "train.lr"),
    (f"{TRAIN} init={{at}}/empty", "empty"),
    (f"{GENERATOR} family=gan", "is none of sit, dit, flowmap, mar"),
    (f"{GENERATOR} family=${{{{nope}}}}", "nope"),
    (f"{GENERATOR} views=0", "views"),
    (f"{GENERATOR} time=log", "is none of"),
    (f"{GENERATOR} model.depth=0", "depth"),
    (f"{GENERATOR} model.heads=0", "heads"),
    (f"train generator --recipe tiny-generator --tokenizer {{at}}/empty {P} {O}", "config.json"),
    # studies
    (f"study {P} {O} --train soft", "soft"),
    (f"study {P} {O} --criteria {{at}}/nowhere", "nowhere"),
    (f"study {P} {O} --criteria {{at}}/list.yaml", "list.yaml"),
    (f"study {P} {O} --criteria {{at}}/binary.yaml", "binary.yaml"),
    (f"study {P} {O} --criteria {{at}}/deep.yaml", "deep.yaml"),
    (f"study {P} {O} --masks a --boxes b", "exclude each other"),
    *[
        (f"study {P} {O} --{name} {{at}}/nowhere", f"--{name} takes one that is there")
        for name in ("masks", "boxes", "metadata")
    ],
    (f"evaluate reconstruction {T} {P} --masks {{at}}/nowhere", "nowhere: no such f"),
    (f"study {P} {O} --init {{at}}/empty", "empty"),
    (f"study --data {{at}}/nowhere {O}", "nowhere"),
    (f"study {P} --out {{at}}/photos/study", "photos"),
    (f"study {P} {O} --tokens 1000000000", "tokens"),
]


def test_there_are_as_many_as_were_asked_for():
    assert len(ROWS) >= 150 and len(set(ROWS)) == len(ROWS)


@pytest.fixture(scope="module")
def checksums(place) -> dict[str, str]:
    """Of all that is there before the first bad command."""
    return files(place)


@pytest.mark.parametrize(("words", "text"), ROWS, ids=[ascii(words)[1:70] for words, _ in ROWS])
def test_bad_input_is_one_line_and_nothing_is_touched(
    words, text, place, checksums, tmp_path, capsys
):
    out = tmp_path / "out"
    given = words.format(at=place, out=out, o=f"--out {out}")
    refused(capsys, given.split(), text)
    assert files(place) == checksums
