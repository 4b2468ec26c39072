"""The table of ``softvq cost``: what systems cost, beside the baselines."""

from typing import Any


def table(systems: list[dict[str, Any]], baselines: list[dict[str, Any]]) -> str:
    """Rows are quantities, columns systems and then the baselines, as lines of text."""
    columns = systems + baselines
    rows = [["", *(c["name"] for c in columns)]]

    def row(name: str, value: Any) -> None:
        rows.append([name, *(value(c) for c in columns)])

    def operations(part: str) -> Any:
        return lambda c: f"{_short(c['parts'][part]['flops'])} / {_short(c['parts'][part]['macs'])}"

    row("pixels", lambda c: f"{c['height']} x {c['width']}")
    row("tokens x channels", lambda c: f"{c['tokens']} x {c['channels']}")
    for part in ("encoder", "bottleneck", "decoder", "network"):
        row(f"M parameters, {part}", lambda c, p=part: f"{c['parts'][p]['parameters'] / 1e6:.1f}")
    for part in ("encoder", "bottleneck", "decoder"):
        row(f"GFLOPs / GMACs, {part}", operations(part))
    row("  one network evaluation", operations("network"))
    row(f"  one image, guidance {systems[0]['guidance']:g}", operations("image"))
    row("    in steps", lambda c: str(c["steps"]))
    for model in ("tokenizer", "generator"):
        row(
            f"training GFLOPs per image, {model}",
            lambda c, m=model: _short(c["training"][m]["flops"]),
        )
    for model in ("tokenizer", "generator"):
        row(
            f"  activations, MB per image, {model}",
            lambda c, m=model: f"{c['training'][m]['activations'] / 1e6:,.1f}",
        )
    for part, what in (("network", "evaluation"), ("image", "image")):
        row(f"x fewer FLOPs than DiT-XL/2, {what}", lambda c, p=part: _ratio(c, baselines, p))
    if any("measured" in c for c in columns):
        for task in ("encode", "decode", "generate", "train_tokenizer", "train_generator"):
            row(
                f"images/s, {task.replace('_', ' ')} (quartiles)",
                lambda c, t=task: (
                    "{median:.3g} ({low:.3g}..{high:.3g})".format(**c["measured"][t])
                    if "measured" in c
                    else "-"
                ),
            )
            if any("per_million" in c for c in columns):
                row("  per million", lambda c, t=task: _price(c, t))
    return aligned(rows)


def aligned(rows: list[list[str]]) -> str:
    """Lines of text: the first column to the left, the others to the right."""
    widths = [max(len(line[i]) for line in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in rows
    )


def _short(operations: int) -> str:
    value = operations / 1e9
    return f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def _ratio(column: dict[str, Any], baselines: list[dict[str, Any]], part: str) -> str:
    for baseline in baselines:
        if (baseline["height"], baseline["width"]) == (column["height"], column["width"]):
            return f"{baseline['parts'][part]['flops'] / column['parts'][part]['flops']:.1f}"
    return "-"


def _price(column: dict[str, Any], task: str) -> str:
    if "per_million" not in column:
        return "-"
    price = column["per_million"][task]
    return f"{price['money']:,.2f} {column['currency']}, {price['kwh']:,.2f} kWh"
