"""Peak memory and time of assigning tokens to codewords, against storing the [tokens, K] matrix.

    python benchmarks/soft_assignment.py [--tokens 16384] [--codewords 8192] [--channels 32]

Prints two Markdown tables. *plain* stores the matrix, as the equations read; *ours* is what the
bottlenecks call. Inference: mixture and nearest codeword, no gradient. Training: the entropy term,
forward and backward, and the mixture, forward and backward. Each figure comes from a process of its
own: memory is by how much the work raised the most memory the process ever held (ru_maxrss), which
sees what kernels allocate inside too; time is the best of three runs after that one. Off by: the
largest difference of a value, and of a gradient over the largest gradient.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from softvq.tokenizer import assignment

TAU, ENTROPY_TAU, EPS = 0.07, 0.01, 1e-6
SCORES = {
    "cosine": assignment.cosine,
    "euclidean": assignment.euclidean,
    "vq": assignment.nearness,
}
# (score, work): what is measured. VQ needs no mixture.
INFERENCE = [("cosine", "assign"), ("euclidean", "assign"), ("vq", "assign")]
TRAINING = [
    ("cosine", "entropy"), ("euclidean", "entropy"), ("vq", "entropy"),
    ("cosine", "mixture"), ("euclidean", "mixture"),
]  # fmt: skip


def plain_entropy_gap(logits: Tensor) -> Tensor:
    """The entropy term as its equation reads, logits [G, T, K]."""
    q, log_q = logits.softmax(-1), logits.log_softmax(-1)
    mean = q.mean(1)
    return -(q * log_q).sum(-1).mean() + (mean * torch.log(mean + EPS)).sum(-1).mean()


def work_of(score_name: str, what: str, arm: str) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """A function of tokens z [1, T, C] and codewords [1, K, C]; returns values, then gradients."""
    score = SCORES[score_name]

    def keys(c: Tensor) -> Tensor:
        return c.detach() if score is assignment.cosine else c

    def plain(z: Tensor, c: Tensor) -> list[Tensor]:
        scores = score(z, keys(c))
        if what == "entropy":
            return [plain_entropy_gap(scores / ENTROPY_TAU)]
        found = [] if score_name == "vq" else [(scores / TAU).softmax(-1) @ c]
        return found + ([scores.argmax(-1)] if what == "assign" else [])

    def ours(z: Tensor, c: Tensor) -> list[Tensor]:
        if what == "entropy":
            return [assignment.entropy_gap(score, ENTROPY_TAU, z, keys(c), eps=EPS)]
        found = [] if score_name == "vq" else [assignment.mixture(score, TAU, z, c, keys(c))]
        return found + ([assignment.nearest(score, z, keys(c))] if what == "assign" else [])

    forward = plain if arm == "plain" else ours

    def run(z: Tensor, c: Tensor) -> list[Tensor]:
        if what == "assign":
            with torch.no_grad():
                return forward(z, c)
        inputs = [z, c] if what == "mixture" or score is not assignment.cosine else [z]
        values = forward(z, c)
        # The gradient from outside is that of a mean square.
        loss = values[0].square().mean() if what == "mixture" else values[0]
        return [v.detach() for v in values] + list(torch.autograd.grad(loss, inputs))

    return run


def data(tokens: int, codewords: int, channels: int) -> tuple[Tensor, Tensor]:
    """Unit vectors z [1, T, C] and codewords [1, K, C] that take gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, tokens, channels), (1, codewords, channels))
    z, c = (F.normalize(torch.randn(shape, generator=generator), dim=-1) for shape in shapes)
    return z.requires_grad_(), c.requires_grad_()


def measure(arm: str, score: str, what: str, *shape: int) -> dict[str, float]:
    """Memory (MiB) and time (s) of one arm."""
    run = work_of(score, what, arm)
    run(*data(64, 64, shape[2]))  # what torch allocates once
    z, c = data(*shape)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(z, c)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run(z, c)
        times.append(time.perf_counter() - start)
    return {"memory": grown, "time": min(times)}


def compare(score: str, what: str, *shape: int) -> dict[str, float]:
    """Largest differences of values and gradients between the arms, and share of equal indices."""
    z, c = data(*shape)
    plain, ours = (work_of(score, what, arm)(z, c) for arm in ("plain", "ours"))
    found: dict[str, float] = {}
    for i, (a, b) in enumerate(zip(plain, ours, strict=True)):
        if not a.is_floating_point():
            found["indices"] = (a == b).float().mean().item()
        elif i == 0:
            found["values"] = (a - b).abs().max().item()
        else:
            ratio = ((a - b).abs().max() / a.abs().max()).item()
            found["gradients"] = max(found.get("gradients", 0.0), ratio)
    return found


def alone(job: str, *arguments: str) -> dict[str, float]:
    """A job in a process of its own. This one stays small: a child inherits its peak."""
    command = [sys.executable, __file__, "--job", job, *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def row(score: str, what: str, shape: list[str]) -> str:
    """One line of a table."""
    a, b = (alone(arm, score, what, *shape) for arm in ("plain", "ours"))
    off = alone("compare", score, what, *shape)
    words = [f"{k} {v:.4%} equal" if k == "indices" else f"{k} {v:.1e}" for k, v in off.items()]
    return (
        f"| {score} {what} | {a['memory']:.0f} | {b['memory']:.1f} | "
        f"{b['memory'] / a['memory']:.3f} | {a['time']:.2f} | {b['time']:.2f} | "
        f"{b['time'] / a['time']:.2f} | {', '.join(words)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--codewords", type=int, default=8192)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--job", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        job, score, what, *sizes = args.job
        measured = [score, what, *map(int, sizes)]
        print(json.dumps(compare(*measured) if job == "compare" else measure(job, *measured)))
        return
    shape = [str(n) for n in (args.tokens, args.codewords, args.channels)]
    matrix = args.tokens * args.codewords * 4 / 2**20
    print(f"{args.tokens:,} tokens, K = {args.codewords:,}, C = {args.channels}, float32, CPU, "
          f"{torch.get_num_threads()} threads; the matrix alone is {matrix:.0f} MiB")  # fmt: skip
    for title, arms in (("inference", INFERENCE), ("training, forward + backward", TRAINING)):
        print(f"\n| {title} | plain MiB | ours MiB | ratio | plain s | ours s | ratio | off by |")
        print("|---|---|---|---|---|---|---|---|")
        for score, what in arms:
            print(row(score, what, shape), flush=True)


if __name__ == "__main__":
    main()
