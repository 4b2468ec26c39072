"""Draws docs/rooms.svg: the road of the data, and the rooms of the code with their real imports.

    python tools/rooms.py

Rooms are those of tests/test_imports.py, from the top down; an arc on the right leads from a floor
to one that it imports, and is the wider, the more files do. Arcs that follow from others are left
out: who knows the pipeline knows the tokenizer. ``tests/test_docs.py`` fails if a room
is missing in the picture.
"""

import sys
from collections import Counter
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from test_imports import MODULES, ROOMS, imports_of, room_of  # noqa: E402

# What travels, and the room that it enters.
ROAD = [
    ("photo file", "data"),
    ("image [3, H, W]", "images"),
    ("tokens [L, C]", "tokenizer"),
    ("token files", "tokens"),
    ("new tokens", "generator"),
    ("image [3, H, W]", "tokenizer"),
    ("picture file", "images"),
]
FLOOR, WIDTH, LEFT, TOP = 30, 960, 30, 150
COLOURS = ["#3b6ea5", "#a5573b", "#4c8a4c", "#7a5aa6", "#a58a3b", "#3b98a5"]


def text(x: float, y: float, what: str, **more: object) -> str:
    attributes = " ".join(f'{name.replace("_", "-")}="{value}"' for name, value in more.items())
    return f'<text x="{x:.0f}" y="{y:.0f}" {attributes}>{escape(what)}</text>'


def road() -> list[str]:
    """Boxes from left to right with arrows between them."""
    step, parts = (WIDTH - 2 * LEFT) / len(ROAD), []
    for i, (what, room) in enumerate(ROAD):
        x = LEFT + i * step
        parts += [
            f'<rect x="{x:.0f}" y="46" width="{step - 26:.0f}" height="34" rx="6" fill="#eef3f8" '
            'stroke="#3b6ea5"/>',
            text(x + (step - 26) / 2, 67, what, text_anchor="middle"),
            text(x + (step - 26) / 2, 98, f"{room}", text_anchor="middle", fill="#666"),
        ]
        if i:
            parts.append(
                f'<path d="M{x - 23:.0f} 63 H{x - 5:.0f}" stroke="#3b6ea5" '
                'marker-end="url(#head)"/>'
            )
    return parts


def floor_y(floor: int) -> float:
    """The middle of a floor: the ground is at the bottom."""
    return TOP + 20 + (len(ROOMS) - 1 - floor) * FLOOR


def house() -> list[str]:
    """One floor a line, and an arc for every pair of floors of which one imports the other."""
    parts = []
    for floor, line in enumerate(ROOMS):
        x, y = float(LEFT), floor_y(floor)
        for name in dict.fromkeys(name.rstrip(".") for name in line.split()):
            own = [m for m in MODULES if m == name or m.startswith(f"{name}.")]
            lines = sum(len(MODULES[m].read_text(encoding="utf-8").splitlines()) for m in own)
            wide = 8.0 * len(name) + 62
            folder = any("." in m for m in own)
            parts += [
                f'<rect x="{x:.0f}" y="{y - 11:.0f}" width="{wide:.0f}" height="23" rx="4" '
                f'fill="{"#f8f1e4" if folder else "#f4f4f4"}" stroke="#999"/>',
                text(x + 8, y + 5, f"{name}/" if folder else name, font_weight="bold"),
                text(x + wide - 7, y + 5, f"{lines:,}", text_anchor="end", fill="#888"),
            ]
            x += wide + 8
    arcs = Counter(
        (room_of(module), room_of(other))
        for module in MODULES
        if module != "__init__"
        for other in {other for other, _ in imports_of(module)}
        if room_of(other) < room_of(module)
    )
    for (above, below), files in sorted(arcs.items()):
        if any(
            (above, mid) in arcs and reaches(mid, below, arcs) for mid in range(below + 1, above)
        ):
            continue
        start, end = floor_y(above), floor_y(below)
        reach = 440 + 22 * (above - below)
        parts.append(
            f'<path d="M440 {start:.0f} C{reach:.0f} {start:.0f} {reach:.0f} {end:.0f} '
            f'448 {end:.0f}" stroke="{COLOURS[above % len(COLOURS)]}" fill="none" opacity="0.7" '
            f'stroke-width="{min(0.8 + 0.25 * files, 4):.2f}" marker-end="url(#head)"/>'
        )
    return parts


def reaches(above: int, below: int, arcs: Counter[tuple[int, int]]) -> bool:
    """Whether some way of arcs leads down from one floor to another."""
    return above == below or any(
        reaches(mid, below, arcs) for mid in range(below, above) if (above, mid) in arcs
    )


def main() -> None:
    height = TOP + 40 + len(ROOMS) * FLOOR
    head = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" markerUnits="userSpaceOnUse" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>'
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">',
        head,
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        text(LEFT, 30, "The road: what travels, and the room that makes it", font_size=16),
        *road(),
        text(LEFT, TOP - 12, "The rooms and their lines; arcs: imports, without those that follow",
             font_size=16),
        *house(),
        "</svg>",
    ]  # fmt: skip
    (ROOT / "docs" / "rooms.svg").write_text("\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
