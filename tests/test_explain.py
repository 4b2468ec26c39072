"""What is said about tokens, against closed forms and against truth that was planted."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq import images
from softvq.cli import main
from softvq.data import Store
from softvq.evaluate.pixels import eye_distance
from softvq.explain.contributions import errors_without_each, prefix_counts, removals
from softvq.explain.decision import decide, pixel_shares, token_shares
from softvq.explain.directions import PENALTIES, Ridge, Target, carriers, find_direction, walk
from softvq.explain.edits import edits
from softvq.explain.explanation import Pictures, explain
from softvq.explain.faithful import deleted, random_orders, shuffled, swap_pairs, swaps
from softvq.explain.maps import area, influence, look, picture_change, places, reading
from softvq.explain.marked import contrast, find_carriers, painted_over
from softvq.explain.mixtures import codeword_latents, features_of, mixture
from softvq.explain.page import WORDS, render, write_page
from softvq.explain.photos import Column, Photos, targets_of
from softvq.explain.records import Explanation, write_explanation
from softvq.explain.section import as_section, strongest
from softvq.explain.variation import Variation, latents_of, pictures_of, without
from softvq.tokenizer import Tokenizer, TokenizerConfig
from softvq.words import Sentences

SIDE = 32


def spectral(**more: object) -> Tokenizer:
    """Untrained: the cosine transform, exact and linear."""
    torch.manual_seed(0)
    values = {
        "height": SIDE, "width": SIDE, "patch": 8, "tokens": 8, "channels": 16,
        "network": "spectral", "nested": True, "bottleneck": "ae", "encoder_width": 16,
        "decoder_width": 16, "encoder_depth": 1, "decoder_depth": 1, "encoder_heads": 2,
        "decoder_heads": 2, "refine_width": 4, "refine_depth": 1,
    }  # fmt: skip
    return Tokenizer(TokenizerConfig(**values | more)).eval().requires_grad_(False)


class Patches(nn.Module):
    """Token l is the mean colour of the l-th of 4 x 4 patches, and nothing else: places, by truth.

    It has what the functions here ask of a tokenizer.
    """

    device = torch.device("cpu")

    def encode(self, pictures: Tensor) -> "Patches.Tokens":
        return self.Tokens(F.avg_pool2d(pictures, 8).flatten(2).mT)

    def decode(self, latents: Tensor) -> Tensor:
        cells = latents.mT.unflatten(2, (4, 4))[:, :, :, None, :, None]
        return cells.expand(-1, -1, -1, 8, -1, 8).reshape(len(latents), 3, SIDE, SIDE)

    def normalize(self, latents: Tensor) -> Tensor:
        return latents

    denormalize = normalize

    class Tokens:
        def __init__(self, latents: Tensor):
            self.latents = latents


def squares(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Grey photos with a bright square whose place across alone varies; and its place."""
    draws = torch.Generator().manual_seed(seed)
    left = torch.randint(0, SIDE - 8, (count,), generator=draws)
    pictures = torch.zeros(count, 3, SIDE, SIDE)
    for picture, x in zip(pictures, left.tolist(), strict=True):
        picture[:, 12:20, x : x + 8] = 0.8
    return pictures, left.double()


def noise(count: int, seed: int = 0) -> Tensor:
    """Pictures as photos are: much of them coarse, little fine."""
    draws = torch.Generator().manual_seed(seed)
    total = torch.zeros(count, 3, SIDE, SIDE)
    for cells, strength in ((2, 0.4), (4, 0.3), (8, 0.2), (16, 0.1)):
        some = torch.randn(count, 3, cells, cells, generator=draws)
        total += strength * F.interpolate(some, (SIDE, SIDE), mode="bilinear")
    return total.clamp(-1, 1)


def store(pictures: Tensor, labels: list[int], classes: list[str], split: str) -> Store:
    names = [f"{split}/{classes[label]}/{i:03d}.png" for i, label in enumerate(labels)]
    pixels = images.to_uint8(pictures)
    return Store(pixels, np.array(labels), names, classes, [], (SIDE, SIDE), 1.0, "made up")


# ---- variation and maps ----


def test_moves_have_the_covariance_of_the_tokens():
    latents = (torch.randn(3, 50, 4) @ torch.randn(3, 4, 4)).transpose(0, 1)
    variation = Variation.of(latents)
    moves = variation.moves(4)
    covariance = torch.stack([latents[:, i].T.cov() for i in range(3)])
    torch.testing.assert_close(torch.einsum("nlc,nld->lcd", moves, moves) / 4, covariance)
    values = torch.linalg.eigvalsh(covariance)[:, -1]
    torch.testing.assert_close(variation.main.square().sum(1), values)


def test_the_derivative_of_a_linear_decoder_is_the_change_itself():
    tokenizer = spectral()
    z, *others = latents_of(tokenizer, noise(4))
    moves = torch.stack(others) - z
    change = picture_change(tokenizer, z, moves)
    with torch.no_grad():
        torch.testing.assert_close(
            change, tokenizer.decode(z + moves) - tokenizer.decode(z[None]), atol=1e-4, rtol=1e-4
        )


def test_the_derivative_of_a_network_is_the_limit_of_differences():
    torch.manual_seed(0)
    config = TokenizerConfig(
        height=SIDE, width=SIDE, patch=8, tokens=4, channels=8, encoder_width=32, decoder_width=32,
        encoder_depth=1, decoder_depth=2, encoder_heads=2, decoder_heads=2, bottleneck="ae",
    )  # fmt: skip
    tokenizer = Tokenizer(config).eval().requires_grad_(False).double()
    z, move = torch.randn(2, 4, 8, dtype=torch.float64)
    step = 1e-5
    pair = tokenizer.decode(torch.stack([z + step * move, z - step * move]))
    slope = (pair[0] - pair[1]) / (2 * step)
    torch.testing.assert_close(picture_change(tokenizer, z, move[None])[0], slope.float())


def test_places_are_found_where_they_are():
    tokenizer = Patches()
    pictures = noise(20)
    latents = latents_of(tokenizer, pictures)
    variation = Variation.of(latents)
    maps = torch.stack([influence(tokenizer, z, variation.moves(3)) for z in latents[:3]])
    for i, place in enumerate(places(maps)):
        assert place.kind == "place" and place.area == pytest.approx(1 / 16, rel=1e-3)
        assert (place.row, place.column) == pytest.approx(((i // 4 + 0.5) / 4, (i % 4 + 0.5) / 4))
        assert place.steadiness == pytest.approx(1, abs=1e-4) and place.overlap < 1e-6
    # The exact map: the standard deviation of each patch's own colour.
    spread = (latents.var(0) / 4).mean(1).sqrt()
    torch.testing.assert_close(maps[0, :, 4, 4][0], spread[0], rtol=1e-3, atol=1e-5)
    read = reading(tokenizer, pictures[0], variation)
    assert all(read[i][8 * (i // 4) : 8 * (i // 4) + 8].sum() > 0 for i in range(16))
    assert read[5].sum() == pytest.approx(float(read[5][8:16, 8:16].sum()))


def test_tokens_of_a_spectrum_are_global_and_fall_in_size():
    tokenizer = spectral()
    variation = Variation.of(latents_of(tokenizer, noise(40)))
    latents = latents_of(tokenizer, noise(3, seed=9))
    moves = variation.moves(16)
    maps = torch.stack([influence(tokenizer, z, moves) for z in latents])
    assert {place.kind for place in places(maps)} == {"global"}
    main = 2 * torch.diag_embed(torch.ones(8))[..., None] * variation.main
    changes = pictures_of(tokenizer, latents[0] + main) - pictures_of(tokenizer, latents[:1])
    assert look(changes[:1]).size > 2 * look(changes[-1:]).size


def test_area_of_flat_and_of_one_cell():
    flat, one = torch.full((4, 4), 1 / 16), torch.zeros(4, 4)
    one[1, 2] = 1
    assert area(torch.stack([flat, one])).tolist() == pytest.approx([1, 1 / 16])


def test_look_knows_waves_and_colours():
    x = torch.arange(SIDE) / SIDE
    wave = torch.cos(2 * math.pi * 4 * x).expand(3, SIDE, SIDE)
    assert look(wave[None]).size == pytest.approx(1 / 8)
    assert look(wave[None]).colour == pytest.approx(0, abs=1e-6)
    tinted = wave * torch.tensor([1.0, 0.0, -1.0])[:, None, None]
    assert look(tinted[None]).colour == pytest.approx(1, abs=1e-6)
    assert look(torch.ones(1, 3, SIDE, SIDE)).size == 1


# ---- what they are worth, and whether it is true ----


def test_errors_without_each_token_are_those_of_its_place():
    tokenizer, pictures = Patches(), noise(3)
    latents = latents_of(tokenizer, pictures)
    mean = latents.mean(0)
    mask = np.zeros((3, SIDE, SIDE), bool)
    mask[0, :8, :8] = True
    errors = errors_without_each(tokenizer, pictures, latents, mean, mask)
    added = (latents - mean).square().mean(2) / 4 / 16  # a sixteenth of the picture each
    torch.testing.assert_close(errors.without - errors.full[:, None], added, atol=1e-6, rtol=1e-3)
    assert errors.lost_inside[0, 0] > 1 and errors.lost_inside[0, 1:].abs().max() < 1e-5
    assert errors.lost_inside[1:].isnan().all() and errors.eye.isnan().all()
    off = errors.lost.std(0) / 3**0.5
    torch.testing.assert_close(errors.margin, 1.96 * off)


def test_of_many_tokens_each_is_taken_from_as_many_photos():
    assert removals(5, 8, 40).all()
    some = removals(9, 8, 24, whole=[4])
    assert some[4].all() and some.sum() <= 24
    assert set(some.sum(0).tolist()) == {3}
    tokenizer, pictures = Patches(), noise(3)
    latents = latents_of(tokenizer, pictures)
    which = removals(3, 16, 16)
    known = errors_without_each(tokenizer, pictures, latents, latents.mean(0)).without
    thinned = errors_without_each(tokenizer, pictures, latents, latents.mean(0), None, which)
    torch.testing.assert_close(thinned.without[which], known[which])
    assert thinned.lost[~which].isnan().all()


def test_the_eye_sees_what_is_gone():
    tokenizer, pictures = Patches(), noise(2)
    latents = latents_of(tokenizer, pictures)
    mean = latents.mean(0)
    found = errors_without_each(tokenizer, pictures, latents, mean, eyed=[1]).eye
    pair = pictures_of(tokenizer, torch.stack([latents[1], without(latents[1], mean, [3])]))
    full, gone = eye_distance(pictures[[1, 1]], pair)
    assert found[0].isnan().all() and found[1, 3] == pytest.approx(gone - full, abs=1e-5)


def test_prefix_counts_go_from_one_to_all():
    assert prefix_counts(1) == [1]
    assert prefix_counts(64) == [1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64]


def test_stated_order_hurts_more_than_chance_and_the_control_is_none():
    tokenizer, pictures = spectral(), noise(12)
    latents = latents_of(tokenizer, pictures)
    mean = latents_of(tokenizer, noise(40, seed=1)).mean(0)
    errors = errors_without_each(tokenizer, pictures, latents, mean)
    known = errors.lost.argsort(1, descending=True)
    orders = torch.cat([known[None], random_orders(12, 8, 0)])
    stated, *chance = deleted(tokenizer, pictures, latents, mean, errors.full, orders)
    assert stated.mean() > 1.5 * torch.stack(chance).mean()
    control = shuffled(tokenizer)
    of_control = latents_of(control, pictures)
    moves = Variation.of(latents).moves(4)
    pairs = swap_pairs(range(12), 12, 8, 12, 0)
    found = swaps(
        tokenizer, control, latents, of_control, pairs,
        lambda photo, token: influence(tokenizer, latents[photo], moves, [token])[0],
    )  # fmt: skip
    assert found.along.median() > 0.95  # linear, but for the clamp at black and white
    assert found.typical.median() < 0.6  # a map of the whole picture says little


def test_in_random_orders_every_token_goes_early_and_late():
    orders = random_orders(3, 8, 0)
    assert torch.equal(orders.sort(2).values, torch.arange(8).expand(4, 3, 8))
    early = (orders.argsort(2) < 4).sum(0)  # in the first half
    assert torch.equal(early, torch.full((3, 8), 2))


def test_shuffled_keeps_the_numbers_and_not_their_order():
    tokenizer = spectral()
    for weight, other in zip(tokenizer.parameters(), shuffled(tokenizer).parameters(), strict=True):
        assert torch.equal(weight.flatten().sort().values, other.flatten().sort().values)
        assert weight.unique().numel() < 9 or not torch.equal(weight, other)


# ---- directions ----


def test_ridge_is_the_regression_of_least_leave_one_out_error():
    torch.manual_seed(0)
    x = torch.randn(12, 5, dtype=torch.float64)
    y = x @ torch.randn(5, dtype=torch.float64) + 0.3 * torch.randn(12, dtype=torch.float64)
    ridge = Ridge(x)

    def solve(x: Tensor, y: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
        centre, mean = x.mean(0), y.mean()
        gram = (x - centre).T @ (x - centre) + penalty * torch.eye(5)
        weights = torch.linalg.solve(gram, (x - centre).T @ (y - mean))
        return weights, mean - weights @ centre

    def left_out(penalty: Tensor) -> float:  # by brute force, around the mean of all
        errors = []
        for i in range(12):
            rest = torch.arange(12) != i
            weights, constant = solve(x[rest], y[rest], penalty)
            errors.append(float((y[i] - x[i] @ weights - constant) ** 2))
        return float(np.mean(errors))

    best = min(PENALTIES * ridge.scale, key=left_out)
    torch.testing.assert_close(ridge.fit(y)[0], solve(x, y, best)[0])


def test_carriers_are_the_fewest_that_sum_to_four_fifths():
    assert carriers([0.1, 0.5, 0.3, 0.1]) == [1, 2]
    assert carriers([-0.2, 1.2, 0.0]) == [1]


@pytest.mark.parametrize("kind", ["place", "colour", "scratch"])
def test_a_planted_factor_is_recovered_and_its_tokens_named(kind: str):
    """R2 of 0.9 on held-out photos, nothing on shuffled values; and the named tokens do it: put
    into another photo they take the factor with them, and the others do not."""
    if kind == "place":
        pictures, factor = squares(160)
    else:
        draws = torch.Generator().manual_seed(3)
        factor = torch.rand(160, generator=draws).double()
        pictures = torch.zeros(160, 3, SIDE, SIDE)
        for picture, value in zip(pictures, factor.tolist(), strict=True):
            if kind == "colour":
                picture[0, 4:28, 4:28], picture[2, 4:28, 4:28] = value, -value
            else:
                picture[:, 10:12, 5:20] = value
    tokenizer: nn.Module = spectral() if kind != "scratch" else Patches()
    latents = latents_of(tokenizer, pictures)
    target = Target(kind, "number", factor[:120], factor[120:])
    found = find_direction(target, latents[:120], latents[120:])
    assert found.score >= 0.9 and found.real and found.control_largest < 0.3
    assert sum(found.shares) == pytest.approx(1, abs=1e-6)
    if kind == "scratch":  # rows 10 and 11, columns 5 to 19: patches 4, 5 and 6
        assert set(found.carriers) <= {4, 5, 6}
    low, high = latents[120 + int(factor[120:].argmin())], latents[120 + int(factor[120:].argmax())]
    named, others = low.clone(), high.clone()
    named[found.carriers], others[found.carriers] = high[found.carriers], low[found.carriers]
    scores = found.of(torch.stack([low, named, others, high]))
    shift = (scores[1] - scores[0]) / (scores[3] - scores[0])
    assert shift >= 0.7 and (scores[2] - scores[0]) / (scores[3] - scores[0]) <= 0.3
    steps = found.of(walk(found, low))
    torch.testing.assert_close(steps.diff(), torch.full((4,), found.spread), rtol=1e-3, atol=1e-4)


def test_classes_of_shuffled_labels_are_not_found():
    latents = torch.randn(80, 2, 4)
    y = (torch.arange(80) % 2).double()
    assert not find_direction(Target("x", "class", y[:40], y[40:]), latents[:40], latents[40:]).real
    latents[:, 0, 0] += 3 * y
    found = find_direction(Target("x", "class", y[:40], y[40:]), latents[:40], latents[40:])
    assert found.real and found.score > 0.85 and found.carriers == [0]


def test_targets_are_marks_classes_and_columns():
    photos = Photos(
        store(noise(8), [0, 1] * 4, ["bad", "ok"], "train"),
        store(noise(6), [0, 1] * 3, ["bad", "ok"], "val"),
        np.ones((8, SIDE, SIDE), bool),
        np.ones((6, SIDE, SIDE), bool),
        [Column("width", list("12345678"), list("123456")),
         Column("lamp", ["a", "b"] * 4, ["a", "b", ""] * 2)],
    )  # fmt: skip
    found = targets_of(photos, np.arange(8), np.arange(6))
    assert [t.name for t in found] == ["marked", "bad", "ok", "width", "lamp = b"]
    assert [t.kind for t in found] == ["marked", "class", "class", "number", "class"]
    assert found[4].held_out.isnan().sum() == 2
    assert not found[0].enough  # all are marked


# ---- what tokens are made of ----


def test_weights_of_a_softvq_token_make_its_latents():
    for more in (
        {"codebook_size": 16, "codebooks": 2, "nested": False},
        {"codebook_size": 8, "codebooks": 4, "codebook_axis": "channels", "l2_norm": False},
        {"codebook_size": 8, "levels": 2, "l2_norm": False, "assignment": "euclidean"},
    ):
        tokenizer = spectral(bottleneck="softvq", **more)
        book = tokenizer.bottleneck
        z = features_of(tokenizer, noise(2))
        weights, first = book.weights(z)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        words = book.embedding
        words = F.normalize(words, dim=-1) if book.l2_norm else words
        chosen = words[(first // book.embedding.shape[1])]  # [L, N, K, c]
        parts = torch.einsum("blnk,lnkc->blnc", weights, chosen)
        made = parts.flatten(2) if book.axis == "channels" else parts.sum(2)
        torch.testing.assert_close(made, book(z).latents, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["softvq", "gmm", "vq", "kl", "ae"])
def test_every_family_has_its_view(family: str):
    tokenizer = spectral(bottleneck=family, codebook_size=16)
    pictures = noise(5)
    found = mixture(tokenizer, pictures, focus=4)
    assert found.family == family
    if family in ("softvq", "gmm", "vq"):
        assert found.effective and len(found.effective) == 8
        assert 1 <= min(found.effective) and max(found.effective) <= 16
        assert found.focus and len(found.focus) == 8
        assert all(0 < choice.weight <= 1 + 1e-6 for token in found.focus for choice in token)
        assert found.used is not None and 1 / 16 <= found.used <= 1
        z = latents_of(tokenizer, pictures)[0]
        alone = codeword_latents(tokenizer, z, 3, [0, 1])
        assert (alone != z).any(-1).nonzero()[:, 1].unique().tolist() == [3]
    if family == "kl":
        assert found.spread and found.nats and found.sure_db > 0
    if family in ("vq", "ae"):
        assert found.sure_db == 0


# ---- edits, marks, decisions ----


def test_edits_of_an_exact_tokenizer_are_consistent():
    tokenizer = spectral()
    latents = latents_of(tokenizer, 0.5 * noise(6))
    variation = Variation.of(latents)
    found, pictures = edits(tokenizer, latents[0], latents[1], list(range(8)), variation)
    assert len(found) == len(pictures) == 8
    assert min(edit.consistency for edit in found) > 0.99
    torch.testing.assert_close(pictures[5], (pictures[0] + pictures[1]) / 2, atol=1e-4, rtol=0)


def test_a_mark_is_carried_by_the_tokens_of_its_place():
    picture = 0.1 * noise(1)[0]
    mask = np.zeros((SIDE, SIDE), bool)
    mask[9:15, 17:23] = True  # in patch 6
    picture[:, mask] = -0.9
    mark, pictures = find_carriers(Patches(), picture, mask)
    assert mark.verdict == "few" and mark.tokens == [6] and mark.removed
    assert mark.contrast_left < 0.5 and mark.outside_db > -0.5
    assert mark.shares[6] == pytest.approx(1, abs=0.05)
    assert abs(contrast(pictures[2:3], mask)) < abs(contrast(pictures[1:2], mask)) / 2


def test_a_mark_in_a_spectrum_is_spread():
    picture = torch.zeros(3, SIDE, SIDE)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[13:17, 13:17] = True
    picture[:, mask] = -0.9
    mark, _ = find_carriers(spectral(), picture, mask)
    assert mark.verdict in ("spread", "lost") and len(mark.tokens) > 2


def test_painting_over_leaves_the_rest_alone():
    picture = noise(1)[0]
    mask = np.zeros((SIDE, SIDE), bool)
    mask[10:14, 10:14] = True
    painted = painted_over(picture, mask)
    outside = torch.ones(SIDE, SIDE, dtype=torch.bool)
    outside[8:16, 8:16] = False
    assert torch.equal(painted[:, outside], picture[:, outside])
    assert not torch.equal(painted, picture)


def test_a_decision_sums_to_the_score_and_shows_its_place():
    tokenizer = Patches()
    picture = torch.zeros(3, SIDE, SIDE)
    picture[:, 24:32, 0:8] = -1  # patch 12, bottom left
    latents, reference = latents_of(tokenizer, torch.stack([picture, torch.zeros_like(picture)]))

    def judge(z: Tensor) -> Tensor:
        return z.square().sum((1, 2)).tanh() + 0.1 * z[:, 0, 0]

    decision, shares = decide(
        tokenizer, "dark", judge, picture, latents, torch.zeros_like(picture), reference
    )
    assert sum(decision.added) + decision.rest == pytest.approx(decision.score, abs=1e-6)
    assert abs(decision.rest) < 0.01 and decision.tokens == [12]
    assert decision.row > 0.7 and decision.column < 0.3 and decision.area < 0.2
    pixels = pixel_shares(tokenizer, judge, picture, torch.zeros_like(picture))
    whole = token_shares(judge, latents, reference).sum()
    torch.testing.assert_close(pixels.sum(), whole, atol=1e-4, rtol=0)
    assert shares.shape == (SIDE, SIDE)


# ---- all of it ----


@pytest.fixture(scope="module")
def explained() -> tuple[Explanation, Pictures]:
    train, val = noise(24), noise(12, seed=1)
    masks = [np.zeros((n, SIDE, SIDE), bool) for n in (24, 12)]
    for pictures, mask in zip((train, val), masks, strict=True):
        pictures[::2, :, 8:16, 8:16] = -1
        mask[::2, 8:16, 8:16] = True
    classes = ["bad", "ok"]
    photos = Photos(
        store(train, [0, 1] * 12, classes, "train"), store(val, [0, 1] * 6, classes, "val"), *masks
    )
    tokenizer = spectral(bottleneck="softvq", codebook_size=32, l2_norm=False)
    return explain(tokenizer, photos, 8, progress=False)


def test_everything_is_found_out(explained, tmp_path):
    found, pictures = explained
    assert len(found.tokens) == 8 and sorted(found.order) == list(range(8))
    assert found.directions[0].name == "marked" and found.decision is not None
    assert len(found.marks) == 3 and len(found.edits) == 8
    assert pictures.acts.shape[:2] == pictures.lost.shape == (4, 8)
    write_explanation(found, tmp_path / "explanation.json")
    again = json.loads((tmp_path / "explanation.json").read_text(encoding="utf-8"))
    assert again["order"] == found.order
    section = as_section(found, strongest(found, pictures), "ja")
    assert section.heading == Sentences(WORDS)("title", "ja") and section.strips[0].figures


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_the_page_is_whole_and_asks_for_nothing(explained, lang):
    words = Sentences(WORDS)
    page = render(*explained, words, lang)
    assert f'<html lang="{lang}">' in page
    assert "http" not in page.replace("http-equiv", "") and 'src="data:' in page
    assert page.count("<section") == page.count("</section>")


def test_sentences_come_in_both_languages_and_are_used(explained):
    words = Sentences(WORDS)
    render(*explained, words)
    source = WORDS.with_name("page.py").read_text() + WORDS.with_name("section.py").read_text()
    page = WORDS.parents[1].joinpath("templates", "explain.html").read_text()
    for key, texts in words.texts.items():
        assert set(texts) == {"en", "ja"}, key
        fields = [sorted(set(_fields(text))) for text in texts.values()]
        assert fields[0] == fields[1], key
        family = key.partition(".")[0]
        built = f"{family}.{{" in source or f"'{family}.' ~" in page
        assert key in words.asked or f'"{key}"' in source or f"'{key}'" in page or built, key


def _fields(text: str) -> list[str]:
    from string import Formatter

    return [name for _, name, _, _ in Formatter().parse(text) if name]


def test_the_command_writes_a_page_and_says_what_is_in_it(tmp_path, capsys):
    tokenizer = spectral()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for split, count in (("train", 10), ("val", 4)):
        for i, picture in enumerate(images.to_pil(noise(count))):
            images.save_png(picture, tmp_path / "photos" / split / "ab"[i % 2] / f"{i}.png")
    command = ["explain", "--data", str(tmp_path / "photos"), "--out", str(tmp_path / "out"),
               "--tokenizer", str(tmp_path / "tokenizer"), "--images", "3"]  # fmt: skip
    assert main([*command, "--lang", "ja"]) == 0
    said = capsys.readouterr().out
    assert "8 tokens explained on 3 held-out photos" in said and "index.html" in said
    assert '<html lang="ja">' in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert main([*command, "--seed", "1"]) == 2  # other settings
    assert "--overwrite" in capsys.readouterr().err


def test_bad_input_is_one_line(tmp_path, capsys):
    for more, said in (
        (["--masks", "m", "--boxes", "b"], "exclude"),
        (["--photo", str(tmp_path / "none.png")], "none.png"),
        (["--data", str(tmp_path / "nowhere")], "no such folder"),
    ):
        data = [] if "--data" in more else ["--data", "builtin"]
        assert main(["explain", *data, "--out", str(tmp_path / "out"), *more]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # needs Chromium, and starts it
@pytest.mark.parametrize("lang", ["en", "ja"])
@pytest.mark.parametrize("width", [1280, 390])
def test_hover_and_drag_in_a_browser(explained, tmp_path, lang, width):
    browsers = pytest.importorskip("playwright.sync_api")
    path = tmp_path / "index.html"
    write_page(*explained, path, lang)
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    with browsers.sync_playwright() as play:
        try:
            browser = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except browsers.Error:
            pytest.skip("no Chromium here")
        page = browser.new_page(viewport={"width": width, "height": 900})
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda line: said.append(line.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        heading = page.locator("#touch h2 span:visible").inner_text()
        assert heading == Sentences(WORDS)("touch", lang)

        page.locator("#chips button").nth(2).hover()
        page.wait_for_function("document.getElementById('stage').dataset.token === '2'")
        token = Sentences(WORDS)("token.n", lang, n=3)
        assert page.locator("#told h3:visible").inner_text() == token

        stage = page.locator("#stage")
        stage.hover(position={"x": 20, "y": 20})
        assert page.locator("#chips .here").count() == 3
        assert page.locator("#here span:visible").count() >= 1

        slider = page.locator("#count")
        slider.scroll_into_view_if_needed()
        before = page.locator("#kept").inner_text()
        box = slider.bounding_box()
        middle = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + box["width"] - 8, middle)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 3, middle, steps=4)
        page.mouse.up()
        assert page.locator("#kept").inner_text() != before
        assert page.locator("#chips .gone").count() > 0

        other = "ja" if lang == "en" else "en"
        page.locator(f"[data-lang={other}]").click()
        assert page.locator("#touch h2 span:visible").inner_text() == Sentences(WORDS)(
            "touch", other
        )
        wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0 and said == []
        assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
        browser.close()
