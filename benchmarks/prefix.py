"""What the first k tokens of a nested tokenizer cost, and whether they are the first k of all.

    python benchmarks/prefix.py --tokenizer DIR [--batch 8]

Prints a Markdown table over k = 1, 2, 4, .., L: operations and time of encoding and of decoding k
tokens, as shares of those of all L, and the largest difference of an encoded prefix to that of all
tokens, in units of the latents' standard deviation. Times are those of the processor, the least of
some calls on pictures of noise, so that other work on the machine does not count.
"""

import argparse
import time
from collections.abc import Callable

import torch

from softvq.coding import size_of
from softvq.evaluate.cost import tokenizer_cost
from softvq.models import open_tokenizer
from softvq.quality import lengths_tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    tokenizer = open_tokenizer(args.tokenizer)
    most = tokenizer.config.tokens
    pixels = torch.rand(args.batch, 3, *size_of(tokenizer)) * 2 - 1
    rows = []
    with torch.inference_mode():
        every = tokenizer.encode(pixels).latents
        for k in lengths_tried(most):
            some = tokenizer.encode(pixels, tokens=k).latents
            off = tokenizer.normalize(some) - tokenizer.normalize(every[:, :k])
            counted = tokenizer_cost(tokenizer.config, k)
            encoding = seconds(lambda k=k: tokenizer.encode(pixels, tokens=k))
            decoding = seconds(lambda k=k: tokenizer.decode(every[:, :k]))
            flops = [counted["encoder"].flops + counted["bottleneck"].flops]
            costs = (*flops, counted["decoder"].flops, encoding, decoding)
            rows.append((k, float(off.abs().max()), *costs))
    print("| tokens | encode, GFLOPs | decode | encode, time | decode, time | off by at most |")
    print("|---|---|---|---|---|---|")
    last = rows[-1]
    for k, off, *costs in rows:
        encode, decode, encoding, decoding = (
            cost / whole for cost, whole in zip(costs, last[2:], strict=True)
        )
        print(
            f"| {k} | {costs[0] / 1e9:.2f} ({encode:.2f}) | {costs[1] / 1e9:.2f} ({decode:.2f}) | "
            f"{encoding:.2f} | {decoding:.2f} | {off:.1g} |"
        )


def seconds(call: Callable[[], object], times: int = 7) -> float:
    """Of the processor, for one call."""
    call()
    found = []
    for _ in range(times):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return min(found)


if __name__ == "__main__":
    main()
