"""softvq.tokens: token files on disk, their resume, and their views."""

import numpy as np
import pytest
import torch
from contract import small
from safetensors import safe_open
from test_data import photos as photo_folder

from softvq import tokens
from softvq.data import Crops, Store, fixed_batches, open_store
from softvq.errors import UserError
from softvq.fingerprint import fingerprint
from softvq.tokenizer import Tokenizer
from softvq.tokens import read_tokens, write_tokens

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
    assert list(kept.index["shards"].values()) == [4, 4, 2]
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
    encode = tokens._encode
    monkeypatch.setattr(tokens, "_encode", lambda *a: (encoded.append(a[2]), encode(*a))[1])
    assert torch.equal(write(tmp_path, tokenizer, store).latents, whole.latents)
    assert encoded == [range(4, 8)]
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
        assert sorted(file.keys()) == ["labels", "latents"]
