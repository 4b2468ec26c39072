"""The rooms of the house: imports point down one list, without a circle. Read from the sources."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import softvq

ROOT = Path(softvq.__file__).parent

# From the ground up. A file may import from its own line and from those above it. A name that ends
# in a dot is a folder; a file that is named itself stands where it is named.
ROOMS = [
    "errors fields",
    "checks",
    "io",
    "outputs device processes",
    "images layers",
    "eye",
    "data. data",
    "tokenizer.",
    "generator.",
    "probe fingerprint",
    "options recipe",
    "interop.",
    "quality",
    "precision",
    "coding",
    "tiles",
    "tokens",
    "encoding",
    "engines",
    "models",
    "pipeline",
    "as_diffusers generate npz",
    "report words",
    "evaluate.",
    "train.",
    "explain.",
    "export.",
    "serve.",
    "study.",
    "augment",
    "plan",
    "demo",
    "commands parser",
    "cli",
    "__main__",
]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def room_of(module: str) -> int:
    for i, line in enumerate(ROOMS):
        for name in line.split():
            if module == name or (name.endswith(".") and module.startswith(name)):
                return i
    raise AssertionError(f"softvq/{module.replace('.', '/')}.py has no room in ROOMS: give it one")


def as_module(name: str) -> str | None:
    """What a dotted name below softvq imports: a file of ours, or None for a name inside one."""
    return next((found for found in (name, f"{name}.__init__") if found in MODULES), None)


def imports_of(module: str) -> Iterator[tuple[str, int]]:
    """Files of ours that a file imports, at any depth, also for type checking, and the line."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [n if as_module(n.removeprefix("softvq.")) else str(node.module) for n in names]
        else:
            continue
        for name in names:
            if name == "softvq" or name.startswith("softvq."):
                found = as_module(name.removeprefix("softvq").removeprefix(".") or "__init__")
                if found and found != module and found != "__init__":
                    yield found, node.lineno


def test_imports_point_down_the_list_of_rooms():
    climbs = [
        f"softvq/{module.replace('.', '/')}.py:{line} imports {other}"
        for module in MODULES
        if module != "__init__"  # the package: no room of the house
        for other, line in imports_of(module)
        if room_of(other) > room_of(module)
    ]
    assert not climbs, "\n".join(climbs)


def test_there_is_no_circle():
    graph = {m: {other for other, _ in imports_of(m)} for m in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_one_door_opens_models():
    """Only models.py knows that there are other layouts than ours."""
    elsewhere = [
        f"{module}:{line} imports {other}"
        for module in MODULES
        if module != "models" and not module.startswith("interop.")
        for other, line in imports_of(module)
        if other.startswith("interop.")
    ]
    assert not elsewhere, "\n".join(elsewhere)


def test_configs_need_no_network():
    """What is imported at the top of their files: properties of a config may open a room."""
    configs = {"checks", "errors", "fields", "tokenizer.config", "tokenizer.terms"}
    for module in (*configs, "generator.config"):
        body = ast.parse(MODULES[module].read_text(encoding="utf-8")).body
        names = [node.module for node in body if isinstance(node, ast.ImportFrom)]
        ours = {name.removeprefix("softvq.") for name in names if name.startswith("softvq.")}
        assert ours <= configs
