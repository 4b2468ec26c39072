"""The fewest tokens that meet a target."""

import pytest
import torch
from contract import photos, small
from test_nested import spectral

from softvq.errors import UserError
from softvq.quality import Curve, Judge, Predictor, Target, lengths_tried, search
from softvq.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(spectral(bottleneck="ae")).eval()


def curves(tokenizer: Tokenizer, pictures: torch.Tensor, judge: Judge) -> torch.Tensor:
    latents = tokenizer.encode(pictures).latents
    with torch.no_grad():
        rebuilt = [tokenizer.decode(latents[:, :k]) for k in range(1, 9)]
    return torch.stack([judge(pictures, x) for x in rebuilt], dim=1)


@pytest.mark.parametrize("target", [Target("psnr", 13.0), Target("eye", 0.5)])
def test_search_finds_the_fewest_that_brute_force_finds(tokenizer, target):
    pictures = photos(12)
    judge = Judge(target.measure)
    tokens = search(tokenizer, pictures, target)
    with torch.no_grad():
        rebuilt = tokenizer.decode(tokens.latents, lengths=tokens.lengths)
    good = tokens.met
    assert torch.equal(good, judge(pictures, rebuilt) >= target.decibels)
    every = curves(tokenizer, pictures, judge) >= target.decibels
    rising = (every.int().diff(dim=1) >= 0).all(1)  # bisection is exact where more is never worse
    assert rising.any() and tokens.lengths.unique().numel() > 1
    for i in rising.nonzero().flatten().tolist():
        fewest = int(every[i].int().argmax()) + 1 if every[i].any() else 8
        assert tokens.lengths[i] == fewest and good[i] == every[i].any()


def test_a_target_out_of_reach_takes_all_tokens_and_says_so(tokenizer):
    tokens = search(tokenizer, photos(), Target("psnr", 90.0))
    assert (tokens.lengths == 8).all() and not tokens.met.any()
    tokens = search(tokenizer, photos(), Target("psnr", 1.0))
    assert (tokens.lengths == 1).all() and tokens.met.all()


def test_the_predictor_agrees_with_the_search_on_other_pictures(tokenizer, tmp_path):
    predictor = Predictor(8, 16)
    predictor.fit(tokenizer, [photos(200, seed=1)])
    pictures, target = photos(100, seed=2), Target("psnr", 13.0)
    found = search(tokenizer, pictures, target).lengths
    told = predictor.lengths(pictures, target)
    within = (told.double().log2() - found.double().log2()).abs() <= 1
    assert within.double().mean() >= 0.9
    assert told.double().mean() <= 1.15 * found.double().mean()
    predictor.save(tmp_path)
    again = Predictor.load(tmp_path, tokenizer)
    assert torch.equal(again.lengths(pictures, target), told)
    with pytest.raises(UserError, match="not of this tokenizer's 4 tokens"):
        Predictor.load(tmp_path, Tokenizer(spectral(bottleneck="ae", tokens=4)))


def test_curves_are_crossed_where_they_reach_the_level():
    predictor = Predictor(8, 16)
    assert predictor.at == [1, 2, 4, 8] == lengths_tried(8)
    assert lengths_tried(6) == [1, 2, 4, 6]
    curve = torch.tensor([[10.0, 20, 30, 40], [25, 26, 27, 28], [1, 2, 3, 4], [10, 20, 20, 40]])
    # Half-way between 4 and 8 in log k is 5.7; a level that is met at once takes 1.
    assert predictor.crossing(curve, 35.0).tolist() == [6, 8, 8, 7]
    assert predictor.crossing(curve, 15.0).tolist() == [2, 1, 8, 2]
    assert predictor.crossing(curve, 20.0).tolist() == [2, 1, 8, 2]


def test_what_cannot_be_asked():
    with pytest.raises(UserError, match="psnr or eye"):
        Target("ssim", 1.0)
    with pytest.raises(UserError, match="above 0"):
        Target("psnr", float("nan"))
    with pytest.raises(UserError, match="it is not nested"):
        search(Tokenizer(small(bottleneck="ae")).eval(), photos(), Target("psnr", 20.0))


def test_a_curve_finds_the_quadratic_function_that_it_is_shown():
    generator = torch.Generator().manual_seed(0)
    x = 5 + 3 * torch.randn(200, 3, generator=generator)
    y = torch.stack([1 + x[:, 0] - 2 * x[:, 1] * x[:, 2], x[:, 2].square()], dim=1)
    curve = Curve(3, 2)
    curve.fit(x, y, ridge=1e-9)
    torch.testing.assert_close(curve(x), y, rtol=1e-3, atol=1e-2)
    assert curve.weight.shape == (10, 2)  # 1, three numbers, six products


def test_what_a_linear_code_leaves_is_its_error():
    """Parseval: the inputs at k are the errors of the pictures of k x C coefficients."""
    predictor, pictures = Predictor(8, 16), photos(5, 40, 24)
    near = Judge("eye").beside(pictures)
    inputs = predictor.inputs(pictures, near)
    coefficients = predictor.spectrum(pictures)
    for i, k in enumerate(predictor.at):
        code = predictor.spectrum.inverse(coefficients[:, :k], 40, 24)
        error = (pictures - code).square().mean((2, 3)).sum(1)
        torch.testing.assert_close(inputs[:, 1 + i], 10 * error.log10(), rtol=1e-3, atol=1e-3)
        if k in predictor.looked_at:
            at = 1 + len(predictor.at) + predictor.looked_at.index(k)
            torch.testing.assert_close(inputs[:, at], near(code), rtol=1e-4, atol=1e-4)
    assert predictor.looked_at == [2, 4] and Predictor(64, 32).looked_at == [4, 16]
