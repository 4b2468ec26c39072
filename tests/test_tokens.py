"""softvq.tokens: token files on disk, their resume, and their views."""

import json

import numpy as np
import pytest
import torch
from contract import small
from helpers.pictures import photos as photo_folder
from PIL import Image
from safetensors import safe_open

from softvq import encoding
from softvq.data import Crops, Store, fixed_batches, open_store
from softvq.encoding import encode_folder, write_tokens
from softvq.errors import UserError
from softvq.fingerprint import fingerprint
from softvq.io import load_tensors, save_tensors
from softvq.tokenizer import Tokenizer
from softvq.tokens import decode_folder, read_tokens

SIZE = (32, 32)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    base = tmp_path_factory.mktemp("photos")
    return open_store(photo_folder(base / "p", 10), "all", SIZE, base / "cache", progress=False)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    model = Tokenizer(small()).eval()
    model.latent_mean.normal_()
    model.latent_std.uniform_(0.5, 2)
    return model


def write(directory, tokenizer, store, **options):
    write_tokens(directory, tokenizer, store, shard_size=4, progress=False, **options)
    return read_tokens(directory, fingerprint(tokenizer))


def test_round_trip(tmp_path, tokenizer, store):
    kept = write(tmp_path, tokenizer, store)
    assert kept.latents.shape == (10, 8, 16) and kept.latents.dtype == torch.float32
    assert kept.names == store.names and kept.classes == store.classes and len(kept) == 10
    assert kept.labels.tolist() == store.labels.tolist()
    assert list(kept.index.shards.values()) == [4, 4, 2]
    pictures = torch.cat([some for some, _ in fixed_batches(store, 10)])
    with torch.no_grad():
        again = tokenizer.decode(tokenizer.denormalize(kept.latents)).clamp(-1, 1)
    torch.testing.assert_close(again, tokenizer.reconstruct(pictures), atol=1e-5, rtol=0)


def test_views(tmp_path, tokenizer, store):
    kept = write(tmp_path / "flipped", tokenizer, store, views=4, seed=7)
    assert len(kept) == 40 and kept.names == store.names * 4
    assert kept.labels.tolist() == store.labels.tolist() * 4
    whole = torch.cat([some for some, _ in fixed_batches(store, 10)])
    crops = Crops(store, seed=7)
    expected = torch.cat(
        [whole, whole.flip(-1)]
        + [torch.stack([crops[i, v * 10 + i][0] for i in range(10)]) for v in (2, 3)]
    )
    with torch.no_grad():
        latents = tokenizer.normalize(tokenizer.encode(expected).latents)
    torch.testing.assert_close(kept.latents, latents, atol=1e-5, rtol=1e-5)
    plain = write(tmp_path / "plain", tokenizer, store, views=2, flip=False, seed=7)
    assert torch.equal(plain.latents[:10], kept.latents[:10])
    assert not torch.equal(plain.latents[10:], kept.latents[10:20])


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_the_same_call_encodes_only_what_is_missing(
    tmp_path, tokenizer, store, monkeypatch, damage
):
    whole = write(tmp_path, tokenizer, store)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    lost = tmp_path / "tokens-00001.safetensors"
    if damage == "missing":
        lost.unlink()
    else:
        lost.write_bytes(lost.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"tokens-00001\.safetensors"):
        read_tokens(tmp_path)

    encoded = []
    pictures = encoding._Read.pictures
    monkeypatch.setattr(
        encoding._Read, "pictures",
        lambda self, entries, done: (encoded.append(entries), pictures(self, entries, done))[1],
    )  # fmt: skip
    assert torch.equal(write(tmp_path, tokenizer, store).latents, whole.latents)
    assert encoded == [[4, 5, 6, 7]]
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")} == before


def test_foreign_tokens_are_refused(tmp_path, tokenizer, store):
    write(tmp_path, tokenizer, store)
    torch.manual_seed(1)
    other = Tokenizer(small())
    with pytest.raises(UserError, match="tokens of another tokenizer"):
        read_tokens(tmp_path, fingerprint(other))
    with pytest.raises(UserError, match=r"other tokens \(another tokenizer\)"):
        write_tokens(tmp_path, other, store, shard_size=4)
    with pytest.raises(UserError, match=r"another views, count, shards"):
        write_tokens(tmp_path, tokenizer, store, views=2, shard_size=4)


def test_fingerprint_reads_weights_buffers_and_config(tokenizer):
    made = fingerprint(tokenizer)
    assert made == fingerprint(tokenizer)
    for change in ("weight", "buffer", "config"):
        other = Tokenizer(small(tau=0.1) if change == "config" else small())
        other.load_state_dict(tokenizer.state_dict())
        with torch.no_grad():
            if change == "weight":
                other.to_latent.weight[0, 0] += 1e-6
            if change == "buffer":
                other.latent_mean += 1e-3
        assert fingerprint(other) != made


def test_what_is_no_folder_of_tokens_is_said(tmp_path, tokenizer, store):
    with pytest.raises(UserError, match=r"no index\.json"):
        read_tokens(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_tokens(tmp_path)
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(UserError, match="lacks 'shards'"):
        read_tokens(tmp_path)


def test_a_folder_without_classes_and_a_training_tokenizer(tmp_path, store):
    flat = Store(
        store.images, np.zeros(10, np.int64), store.names, [], [], SIZE, store.margin, "flat"
    )
    tokenizer = Tokenizer(small(bottleneck="kl")).train()
    first = write(tmp_path / "a", tokenizer, flat)
    assert first.classes == [] and tokenizer.training
    assert torch.equal(first.latents, write(tmp_path / "b", tokenizer, flat).latents)
    with safe_open(tmp_path / "a" / "tokens-00002.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["labels", "latents", "photos"]


# ---- damage ----

SHARD = "tokens-00000.safetensors"


def edit_index(folder, **changes):
    path = folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '"x"',
        "[" * 100_000,
        *({"height": height} for height in ("64", 0, -8, None, 1e9, 10**12, True)),
        *({"shards": shards} for shards in ({}, [], "x", {"../x": 10}, {SHARD: "4"})),
        {"classes": "ab"},
        {"count": 11},
        {"channels": 5},
        {"tokens": 5},
    ],
)
def test_a_damaged_index_is_one_line(tmp_path, tokenizer, store, text):
    write(tmp_path, tokenizer, store)
    if isinstance(text, dict):
        edit_index(tmp_path, **text)
    else:
        (tmp_path / "index.json").write_text(text)
    with pytest.raises(UserError, match=str(tmp_path)):
        read_tokens(tmp_path)
    if isinstance(text, str):
        with pytest.raises(UserError, match="give another folder"):
            write_tokens(tmp_path, tokenizer, store, shard_size=4, progress=False)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"names": ["a", "b"]}, "2 names for 4 photos"),
        ({"names": [f"{i}.png" for i in range(18)]}, "18 names for 4 photos"),
        ({"names": ["a.png"] * 4}, r"has 4 entries of 'a\.png' and should have 1"),
        ({"names": ["a", "b", "c", ""]}, "no file name"),
        ({"names": ["a", "b", "c", "."]}, "no file name"),
        ({"names": ["a", "b", "c", "\0"]}, "no file name"),
        ({"names": ["a", "b", "c", "../d"]}, "outside"),
        ({"names": ["a", "b", "c", 1]}, "no list of names"),
        ({"names": 4}, "no list of names"),
        ({"latents": torch.zeros(4, 8, 5)}, r"not F32 \[4, 8, 16\]"),
        ({"latents": torch.zeros(4, 5, 16)}, r"not F32 \[4, 8, 16\]"),
        ({"latents": torch.zeros(4, 8, 16, dtype=torch.float64)}, "F64"),
        ({"latents": torch.full((4, 8, 16), torch.nan)}, "not finite"),
        ({"labels": torch.full((4,), 99)}, "labels are not of the"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels are I64"),
    ],
)
def test_a_damaged_shard_is_one_line(tmp_path, tokenizer, store, change, says):
    write(tmp_path, tokenizer, store)
    whole = load_tensors(tmp_path / SHARD)
    names = json.dumps(change.pop("names", [f"{i}.png" for i in range(4)]))
    save_tensors(whole | change, tmp_path / SHARD, {"names": names})
    with pytest.raises(UserError, match=says):
        decode_folder(tokenizer, tmp_path, tmp_path.with_name("decoded"), progress=False)
    assert not tmp_path.with_name("decoded").exists()


def test_names_that_are_no_json(tmp_path, tokenizer, store):
    write(tmp_path, tokenizer, store)
    for metadata in ({"names": "["}, None):
        save_tensors(load_tensors(tmp_path / SHARD), tmp_path / SHARD, metadata)
        with pytest.raises(UserError, match="no list of names"):
            read_tokens(tmp_path)


# ---- folders ----


def test_every_view_is_decoded_to_a_picture_of_its_own(tmp_path, tokenizer, store):
    write(tmp_path / "tokens", tokenizer, store, views=4)
    out = tmp_path / "out"
    assert decode_folder(tokenizer, tmp_path / "tokens", out, progress=False) == 40
    found = {path.relative_to(out).as_posix() for path in out.rglob("*.png")}
    stems = {name.rsplit(".", 1)[0] for name in store.names}
    assert found == {f"{stem}{view}.png" for stem in stems for view in ("", "-2", "-3", "-4")}


def test_decoding_replaces_nothing_that_it_did_not_write(tmp_path, tokenizer):
    own = photo_folder(tmp_path / "own", 4)
    before = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    encode_folder(tokenizer, own, tmp_path / "tokens", progress=False)
    with pytest.raises(UserError, match="softvq did not write"):
        decode_folder(tokenizer, tmp_path / "tokens", own, progress=False)
    with pytest.raises(UserError, match="lies in the photos' folder"):
        encode_folder(tokenizer, own, own, progress=False)
    with pytest.raises(UserError, match="softvq did not write"):
        decode_folder(tokenizer, tmp_path / "tokens", tmp_path / "tokens", progress=False)
    assert before == {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}


def test_new_photos_are_added_and_nothing_is_encoded_twice(tmp_path, tokenizer):
    own = photo_folder(tmp_path / "own", 4)
    out = tmp_path / "tokens"
    _, new = encode_folder(tokenizer, own, out, progress=False)
    first = read_tokens(out)
    assert new == 4 and encode_folder(tokenizer, own, out, progress=False)[1] == 0
    before = {path.name: path.read_bytes() for path in out.glob("*.safetensors")}
    for name in ("A new class/1.png", "zebra/2.png", f"{first.names[0].split('/')[0]}/3.png"):
        (own / name).parent.mkdir(exist_ok=True)
        random = np.random.default_rng(len(name)).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(random).save(own / name)
    _, new = encode_folder(tokenizer, own, out, progress=False)
    both = read_tokens(out)
    assert new == 3 and len(both) == 7 and both.names[:4] == first.names
    assert before == {name: (out / name).read_bytes() for name in before}
    # As one call encodes them, but for the order of photos and classes.
    encode_folder(tokenizer, own, tmp_path / "whole", progress=False)
    whole = read_tokens(tmp_path / "whole")
    for name, latents, label in zip(both.names, both.latents, both.labels, strict=True):
        at = whole.names.index(name)
        torch.testing.assert_close(latents, whole.latents[at], atol=1e-5, rtol=1e-5)
        assert both.classes[label] == whole.classes[whole.labels[at]] == name.split("/")[0]
    # A stopped addition goes on.
    added = sorted({path.name for path in out.glob("*.safetensors")} - set(before))
    (out / added[0]).unlink()
    _, new = encode_folder(tokenizer, own, out, progress=False)
    again = read_tokens(out)
    assert new == 3 and again.names == both.names and torch.equal(again.latents, both.latents)


def test_photos_that_changed_or_went_are_refused(tmp_path, tokenizer):
    own = photo_folder(tmp_path / "own", 4)
    encode_folder(tokenizer, own, tmp_path / "tokens", progress=False)
    names = read_tokens(tmp_path / "tokens").names
    kept = (own / names[0]).read_bytes()
    Image.new("RGB", (40, 40), "red").save(own / names[0])
    with pytest.raises(UserError, match="is another photo now; give another folder"):
        encode_folder(tokenizer, own, tmp_path / "tokens", progress=False)
    (own / names[0]).unlink()
    with pytest.raises(UserError, match="no longer there"):
        encode_folder(tokenizer, own, tmp_path / "tokens", progress=False)
    (own / names[0]).write_bytes(kept)
    assert encode_folder(tokenizer, own, tmp_path / "tokens", progress=False)[1] == 0
