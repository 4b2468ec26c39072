"""The variants of the bottlenecks against their equations, and assignment without the matrix."""

import copy
import math
from pathlib import Path
from unittest import mock

import pytest
import torch
from contract import TokenizerContract, photos, small
from safetensors import safe_open
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F
from torch.profiler import profile

from softvq.errors import UserError
from softvq.interop.reference import export_reference
from softvq.models import open_tokenizer
from softvq.processes import reading
from softvq.tokenizer import Tokenizer
from softvq.tokenizer import assignment as assign
from softvq.tokenizer.bottleneck import BOTTLENECKS, SoftVQ
from softvq.tokenizer.softvq import log_joint
from softvq.tokenizer.vq import REVIVED

GOLDEN = Path(__file__).parent / "golden"


class TestEuclidean(TokenizerContract):
    config = small(assignment="euclidean", gain=True)


class TestEuclideanWithoutNorm(TokenizerContract):
    config = small(assignment="euclidean", l2_norm=False, codebooks=2)


class TestProduct(TokenizerContract):
    config = small(codebooks=4, codebook_axis="channels")


class TestResidual(TokenizerContract):
    config = small(levels=3, codebooks=2, gain=True)


class TestResidualProductWithoutNorm(TokenizerContract):
    config = small(levels=2, codebooks=2, codebook_axis="channels", l2_norm=False)


class TestGMM(TokenizerContract):
    config = small(bottleneck="gmm", codebooks=2, gain=True)


class TestGMMWithoutNorm(TokenizerContract):
    config = small(bottleneck="gmm", l2_norm=False, tau=1.0)


class TestVQMovingAverage(TokenizerContract):
    config = small(bottleneck="vq", vq_update="ema")


class TestSimVQ(TokenizerContract):
    config = small(bottleneck="vq", vq_update="simvq")


class TestKLFreeBits(TokenizerContract):
    config = small(bottleneck="kl", free_bits=0.01)


def bottleneck(**changes):
    torch.manual_seed(0)
    config = small(**changes)
    made = BOTTLENECKS[config.bottleneck](config)
    made.init_weights()
    return made


# Equations, token by token.


@pytest.mark.parametrize("l2_norm", [True, False])
def test_euclidean_is_the_equation_of_the_paper(l2_norm):
    soft = bottleneck(assignment="euclidean", codebooks=2, l2_norm=l2_norm)
    z = torch.randn(3, 8, 16)
    tokens = soft(z)
    for b in range(3):
        for token in range(8):
            codes, feature = soft.embedding[token // 4], z[b, token]
            if l2_norm:
                codes, feature = F.normalize(codes, dim=-1), F.normalize(feature, dim=0)
            distance = (feature - codes).norm(dim=-1)
            weights = (-distance / 0.07).softmax(0)
            torch.testing.assert_close(tokens.latents[b, token], weights @ codes)
            assert tokens.indices[b, token] == distance.argmin()


def test_euclidean_codewords_learn_through_keys_and_values():
    soft = bottleneck(assignment="euclidean", l2_norm=False)
    z, target = torch.randn(2, 8, 16), torch.randn(2, 8, 16)
    (soft(z).latents * target).sum().backward()
    codes = soft.embedding.detach()[0].requires_grad_()
    weights = (-(z[:, :, None] - codes).norm(dim=-1) / 0.07).softmax(-1)
    (weights @ codes * target).sum().backward()
    torch.testing.assert_close(soft.embedding.grad[0], codes.grad, atol=1e-4, rtol=1e-4)


def test_a_token_on_a_codeword_has_a_finite_gradient():
    soft = bottleneck(assignment="euclidean", l2_norm=False)
    z = soft.embedding.detach()[0, :8][None].clone().requires_grad_()
    soft.train()(z).latents.square().sum().backward()
    assert torch.isfinite(z.grad).all() and torch.isfinite(soft.embedding.grad).all()


def test_product_quantisation_is_one_quantiser_per_group_of_channels():
    soft = bottleneck(codebooks=4, codebook_axis="channels", assignment="euclidean", l2_norm=False)
    assert soft.embedding.shape == (4, 64, 4)
    z = torch.randn(3, 8, 16)
    tokens = soft(z)
    assert tokens.indices.shape == (3, 8, 4)
    for group in range(4):
        part, codes = z[..., 4 * group : 4 * group + 4], soft.embedding[group]
        distance = (part[:, :, None] - codes).norm(dim=-1)
        torch.testing.assert_close(
            tokens.latents[..., 4 * group : 4 * group + 4], (-distance / 0.07).softmax(-1) @ codes
        )
        assert torch.equal(tokens.indices[..., group], distance.argmin(-1))


@pytest.mark.parametrize("l2_norm", [True, False])
def test_each_level_quantises_what_the_levels_before_it_left(l2_norm):
    soft = bottleneck(levels=3, l2_norm=l2_norm, assignment="euclidean")
    z = torch.randn(3, 8, 16)
    tokens = soft(z)
    left = F.normalize(z, dim=-1) if l2_norm else z
    total = torch.zeros_like(z)
    for level in range(3):
        codes = F.normalize(soft.embedding[level], dim=-1) if l2_norm else soft.embedding[level]
        size = left.norm(dim=-1, keepdim=True) if l2_norm else torch.ones(())
        distance = (left / size)[:, :, None].sub(codes).norm(dim=-1)
        part = size * ((-distance / 0.07).softmax(-1) @ codes)
        assert torch.equal(tokens.indices[..., level], distance.argmin(-1))
        total, left = total + part, left - part
    torch.testing.assert_close(tokens.latents, total, atol=1e-5, rtol=1e-4)


def test_more_levels_leave_less():
    z = F.normalize(torch.randn(32, 8, 16), dim=-1)
    left = []
    for levels in (1, 2, 4):
        soft = bottleneck(levels=levels, codebook_size=256).eval()
        left.append((soft(z).latents - z).square().mean())
    assert left[0] > 1.1 * left[1] > 1.2 * left[2]


def test_mixture_is_the_posterior_mean_of_a_gaussian_mixture():
    soft = bottleneck(bottleneck="gmm", l2_norm=False, codebook_size=5, tau=1.0)
    with torch.no_grad():
        soft.embedding.normal_()
        soft.log_variance.normal_(std=0.5)
        soft.mixture_logits.normal_()
    z = torch.randn(3, 8, 16)
    tokens = soft(z)
    components = Normal(soft.embedding[0], (0.5 * soft.log_variance[0, :, None]).exp())
    prior = torch.distributions.Categorical(logits=soft.mixture_logits[0])
    joint = components.log_prob(z[:, :, None]).sum(-1) + prior.logits
    torch.testing.assert_close(tokens.latents, joint.softmax(-1) @ soft.embedding[0])
    assert torch.equal(tokens.indices, joint.argmax(-1))
    # What a score may differ by: a constant per token.
    score = log_joint(1.0, z.flatten(0, 1)[None], *soft.keys(soft.embedding, 0))
    off = score[0] - joint.flatten(0, 1)
    torch.testing.assert_close(off, off[:, :1].expand_as(off), atol=1e-4, rtol=1e-4)


def test_a_new_mixture_is_the_cosine_assignment():
    cosine, gmm = bottleneck(codebooks=2).eval(), bottleneck(bottleneck="gmm", codebooks=2).eval()
    gmm.embedding.data.copy_(cosine.embedding)
    z = torch.randn(3, 8, 16)
    torch.testing.assert_close(gmm(z).latents, cosine(z).latents, atol=1e-5, rtol=1e-4)
    assert torch.equal(gmm(z).indices, cosine(z).indices)


def test_indices_map_to_the_wrong_order_of_the_reference_and_back():
    """It views [codebooks, B x segment] as if images came first."""
    with safe_open(GOLDEN / "tok_softvq_32tok_patch8.safetensors", "pt") as file:
        wrong = file.get_tensor("out.indices")
        z = file.get_tensor("out.quant_conv")
        embedding = file.get_tensor("sd.quantize.embedding")
    batch, codebooks, segment = wrong.shape
    soft = SoftVQ(small(tokens=32, codebooks=codebooks, codebook_size=512))
    soft.embedding.data.copy_(embedding)
    right = wrong.reshape(codebooks, batch, segment).permute(1, 0, 2).flatten(1)
    assert torch.equal(soft(z).indices, right)
    assert (wrong.flatten(1) == right).float().mean() < 0.5


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"codebooks": 4}, 1),
        ({"codebooks": 4, "codebook_axis": "channels"}, 4),
        ({"codebooks": 2, "levels": 3}, 3),
        ({"codebooks": 2, "levels": 3, "codebook_axis": "channels"}, 6),
    ],
)
def test_numbers_tell_the_codewords_of_different_codebooks_apart(changes, count):
    soft = bottleneck(**changes)
    numbers = soft.number(soft(torch.randn(50, 8, 16)).indices)
    assert numbers.shape == ((50, 8) if count == 1 else (50, 8, count))
    each = numbers.view(50, 8, count)
    for token in range(8):
        for i in range(count):
            books = set((each[:, token, i] // 64).tolist())
            if changes.get("codebook_axis") == "channels":
                assert books == {i}
            else:
                segment = token * changes["codebooks"] // 8
                assert books == {i * changes["codebooks"] + segment}
    assert soft.codewords == 64 * len(soft.embedding) > numbers.max()


# The matrix of scores is never there.

KEYS = {
    "cosine": (assign.cosine, lambda c: (c,)),
    "nearness": (assign.nearness, lambda c: (c,)),
    "euclidean": (assign.euclidean, lambda c: (c,)),
    "gmm": (
        lambda *args: log_joint(0.07, *args),
        lambda c: (c, 0.1 * c[..., 0] - 2, c[..., 1]),
    ),
}


def plain_entropy_gap(logits, pooled, eps):
    """H(q) - H(E q) with everything stored: logits [G, T, K]."""
    q, log_q = logits.softmax(-1), logits.log_softmax(-1)
    mean = q.mean((0, 1))[None] if pooled else q.mean(1)
    return -(q * log_q).sum(-1).mean() + (mean * (mean + eps).log()).sum(-1).mean()


@pytest.fixture
def few_at_once():
    with mock.patch.object(assign, "tokens_at_once", lambda z, codewords: 7):
        yield


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("name", KEYS)
def test_entropy_in_pieces_has_the_value_and_gradients_of_the_whole(name, pooled, few_at_once):
    score, keys_of = KEYS[name]
    torch.manual_seed(0)
    z = F.normalize(torch.randn(2, 40, 8, dtype=torch.float64), dim=-1).requires_grad_()
    c = F.normalize(torch.randn(2, 30, 8, dtype=torch.float64), dim=-1).requires_grad_()
    ours = assign.entropy_gap(score, 0.05, z, *keys_of(c), pooled=pooled, eps=1e-6)
    plain = plain_entropy_gap(score(z, *keys_of(c)) / 0.05, pooled, 1e-6)
    torch.testing.assert_close(ours, plain)
    for one, two in zip(
        torch.autograd.grad(ours, (z, c)), torch.autograd.grad(plain, (z, c)), strict=True
    ):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("name", KEYS)
def test_mixtures_in_pieces_are_the_whole(name, few_at_once):
    score, keys_of = KEYS[name]
    torch.manual_seed(0)
    z = torch.randn(2, 40, 8, dtype=torch.float64, requires_grad=True)
    c = torch.randn(2, 30, 8, dtype=torch.float64, requires_grad=True)
    ours = assign.mixture(score, 0.5, z, c, *keys_of(c))
    scores = score(z, *keys_of(c))
    plain = (scores / 0.5).softmax(-1) @ c
    torch.testing.assert_close(ours, plain)
    target = torch.randn_like(plain)
    for one, two in zip(
        torch.autograd.grad(ours, (z, c), target),
        torch.autograd.grad(plain, (z, c), target),
        strict=True,
    ):
        torch.testing.assert_close(one, two)
    assert torch.equal(assign.nearest(score, z, *keys_of(c)), scores.argmax(-1))
    peaks = assign.peak(score, 0.5, z, *keys_of(c))
    torch.testing.assert_close(peaks, (scores / 0.5).softmax(-1).amax(-1).detach())


@pytest.mark.parametrize("channels", [5, 16, 32, 64])
def test_the_fused_kernel_is_taken(channels):
    z, c = torch.randn(1, 100, channels), torch.randn(1, 200, channels, requires_grad=True)
    with profile() as events:
        assign.mixture(assign.cosine, 0.07, z, c, c.detach()).sum().backward()
    names = {event.key for event in events.key_averages()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names
    assert "aten::_scaled_dot_product_attention_math" not in names


@pytest.mark.parametrize(
    "changes",
    [{}, {"assignment": "euclidean"}, {"bottleneck": "gmm"}, {"bottleneck": "vq"}],
    ids=["cosine", "euclidean", "gmm", "vq"],
)
def test_no_tensor_is_as_large_as_the_scores(changes):
    """Of 512 tokens and 4096 codewords, forward, entropy and backward."""
    made = bottleneck(tokens=8, channels=16, codebook_size=4096, **changes).train()
    z = torch.randn(64, 8, 16, requires_grad=True)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.numel())
            return out

    with Watch():
        tokens = made(z)
        (tokens.latents.square().sum() + tokens.losses["entropy"]).backward()
    assert largest <= 512 * 4096 // 8


@pytest.mark.parametrize(
    "changes",
    [{"codebooks": 4}, {"assignment": "euclidean"}, {"levels": 2}, {"bottleneck": "vq"}],
    ids=["cosine", "euclidean", "residual", "vq"],
)
def test_export_leaves_the_batch_open(changes):
    made = bottleneck(codebook_size=4096, **changes).eval()

    class Encode(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.made = made

        def forward(self, z):
            tokens = self.made(z)
            return tokens.latents, tokens.indices

    shapes = ({0: torch.export.Dim("batch", max=1024)},)
    exported = torch.export.export(Encode(), (torch.randn(3, 8, 16),), dynamic_shapes=shapes)
    z = torch.randn(40, 8, 16)
    latents, indices = exported.module()(z)
    torch.testing.assert_close(latents, made(z).latents)
    assert torch.equal(indices, made(z).indices)


# VQ.


def test_moving_averages_against_the_recursion():
    vq = bottleneck(bottleneck="vq", vq_update="ema", codebook_size=4, l2_norm=False).train()
    vq.embedding.weight.data.copy_(torch.eye(16)[:4])
    count, total = torch.zeros(4), torch.zeros(4, 16)
    for _ in range(3):
        z = torch.eye(16)[torch.arange(8) % 4][None] + 0.1 * torch.randn(2, 8, 16)
        z.requires_grad_()
        chosen = torch.cdist(z, vq.embedding.weight).argmin(-1)
        for k in range(4):
            count[k] = 0.99 * count[k] + 0.01 * (chosen == k).sum()
            total[k] = 0.99 * total[k] + 0.01 * z.detach()[chosen == k].sum(0)
        tokens = vq(z)
        assert torch.equal(tokens.indices, chosen) and "codebook" not in tokens.losses
        torch.testing.assert_close(vq.embedding.weight, total / count[:, None])
    before = vq.embedding.weight.clone()
    vq(z.detach())  # of a frozen encoder
    vq.eval()(z)
    assert torch.equal(vq.embedding.weight, before)


def test_dead_codewords_are_put_on_tokens_of_the_batch():
    vq = bottleneck(bottleneck="vq", vq_update="ema", codebook_size=64, l2_norm=False).train()
    z = torch.randn(4, 8, 16, requires_grad=True)
    used = vq(z).indices.unique()
    assert len(used) < 64
    unused = [k for k in range(64) if k not in used]
    off = (vq.embedding.weight[unused, None] - z.flatten(0, 1)).abs().amax(-1).amin(-1)
    assert off.max() < 1e-5
    # One that falls silent has time: it is drawn anew when its average is down to the threshold.
    vq.ema_count.fill_(1.0)
    vq.ema_sum.copy_(vq.embedding.weight)
    first, steps = vq.embedding.weight[unused[0]].clone(), 0
    other = z[:1, :1].expand(4, 8, 16) + 5
    while torch.allclose(vq.embedding.weight[unused[0]], first, atol=1e-4):
        vq(other)
        steps += 1
    # Its count decays by 0.99 a step while the average tends to 32 tokens / 64 codewords.
    average = [0.5 + 0.5 * 0.99**n for n in range(1000)]
    assert steps == next(n for n in range(1000) if 0.99**n < REVIVED * average[n])


def test_a_moving_average_goes_on_from_its_state():
    one = bottleneck(bottleneck="vq", vq_update="ema").train()
    batches = torch.randn(6, 4, 8, 16, requires_grad=True)
    for z in batches[:3]:
        one(z)
    two = bottleneck(bottleneck="vq", vq_update="ema").train()
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for made in (one, two):
        torch.manual_seed(5)
        for z in batches[3:]:
            made(z)
    assert torch.equal(one.embedding.weight, two.embedding.weight)


def _average(rank: int, folder: str) -> None:
    """One of two processes, each with its half of a batch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    vq = bottleneck(bottleneck="vq", vq_update="ema", codebook_size=16).train()
    z = torch.randn(8, 8, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    torch.manual_seed(0)  # what is drawn is drawn for the whole batch, in every process
    with reading(rank, 2):
        vq(z[4 * rank : 4 * rank + 4])
    torch.save(vq.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_average_as_one(tmp_path):
    torch.multiprocessing.spawn(_average, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    vq = bottleneck(bottleneck="vq", vq_update="ema", codebook_size=16).train()
    z = torch.randn(8, 8, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    used = vq(z).indices.unique()
    torch.testing.assert_close(first["embedding.weight"][used], vq.embedding.weight[used])


def test_every_codeword_of_simvq_moves_with_any():
    vq = bottleneck(bottleneck="vq", vq_update="simvq", l2_norm=False).train()
    fixed = vq.embedding.weight.clone()
    before = (vq.embedding.weight @ vq.basis).detach()
    z = torch.randn(1, 8, 16)
    assert torch.equal(vq(z).indices, torch.cdist(z, before[None]).argmin(-1))
    sum(vq(z).losses.values()).backward()
    torch.optim.SGD([p for p in vq.parameters() if p.requires_grad], lr=0.1).step()
    assert torch.equal(vq.embedding.weight, fixed)
    moved = (vq.embedding.weight @ vq.basis - before).norm(dim=-1)
    assert (moved > 1e-4).all()


# KL.


def test_free_bits_are_a_floor_under_each_channel():
    z = 0.3 * torch.randn(6, 8, 32)
    mean, logvar = z.chunk(2, -1)
    prior = Normal(0.0, 1.0)
    each = kl_divergence(Normal(mean, (0.5 * logvar).exp()), prior).mean((0, 1))
    floor = each.sort().values[7:9].mean().item()
    made = bottleneck(bottleneck="kl", kl_weight=1.0, free_bits=floor).train()
    z.requires_grad_()
    tokens = made(z)
    torch.testing.assert_close(tokens.losses["kl"], 8 * each.clamp_min(floor).sum())
    torch.testing.assert_close(tokens.stats["kl"], 8 * each.sum())
    tokens.losses["kl"].backward()
    silent = (z.grad.chunk(2, -1)[0] == 0).all((0, 1))
    assert torch.equal(silent, each < floor) and 0 < silent.sum() < 16


def test_a_sample_is_drawn_from_the_posterior():
    kl = bottleneck(bottleneck="kl").eval()
    z = torch.randn(1, 8, 32)
    tokens = kl(z)
    drawn = torch.stack([tokens.sample() for _ in range(4000)])
    mean, logvar = z.chunk(2, -1)
    assert ((drawn.mean(0) - mean) / (0.5 * logvar).exp()).abs().max() < 5 / math.sqrt(4000)
    torch.testing.assert_close(drawn.std(0), (0.5 * logvar).exp(), rtol=0.06, atol=0)
    ae = bottleneck(bottleneck="ae")(torch.randn(1, 8, 16))
    assert ae.sample() is ae.latents


# Configs and files.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"assignment": "manhattan"}, "assignment 'manhattan' is none of cosine, euclidean"),
        ({"codebook_axis": "pixels"}, "codebook_axis 'pixels' is none of tokens, channels"),
        ({"codebook_axis": "channels", "codebooks": 3}, "channels 16 is not divisible by codebook"),
        ({"vq_update": "sgd"}, "vq_update 'sgd' is none of gradient, ema, simvq"),
        ({"levels": 0}, "levels must be above 0, got 0"),
    ],
)
def test_bad_configs_say_what_is_wrong(changes, message):
    with pytest.raises(UserError, match=message):
        Tokenizer(small(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bottleneck": "gmm"}, "bottleneck gmm"),
        ({"assignment": "euclidean"}, "assignment euclidean"),
        ({"codebook_axis": "channels", "codebooks": 2}, "codebooks over channels"),
        ({"levels": 2}, "2 levels"),
        ({"bottleneck": "vq", "vq_update": "simvq"}, "vq_update simvq"),
    ],
)
def test_the_layout_of_the_reference_has_no_such_variant(changes, message, tmp_path):
    with pytest.raises(UserError, match=f"cannot express this tokenizer: {message}$"):
        export_reference(Tokenizer(small(layer_scale=1e-5, **changes)), tmp_path)


def test_a_codebook_learnt_by_averages_is_written_in_the_layout_of_the_reference(tmp_path):
    net = Tokenizer(small(layer_scale=1e-5, bottleneck="vq", vq_update="ema"))
    net.train().encode(photos())
    export_reference(net.eval(), tmp_path)
    again = open_tokenizer(tmp_path, num_heads=2)
    assert torch.equal(again.reconstruct(photos()), net.reconstruct(photos()))
