"""The package says what it needs and carries what it has."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path, PurePath

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Needed, but not by an import: the built-in photos; torch.utils.tensorboard; programs.
NOT_IMPORTED = {"scikit-image", "tensorboard"}
UNIX_ONLY = {"fcntl", "grp", "posix", "pwd", "resource", "termios"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(folder: str) -> set[str]:
    """Distributions whose modules a folder's files import, at any depth."""
    own = {path.stem for path in (ROOT / folder).rglob("*.py")} | {"softvq", "helpers"}
    known = metadata.packages_distributions()
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            else:
                continue
            for name in {name.split(".")[0] for name in names} - own - sys.stdlib_module_names:
                found |= {normal(d) for d in known.get(name, [name])}
    return found


def declared(*extras: str) -> set[str]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return {normal(Requirement(line).name) for line in lines}


def test_what_is_imported_is_declared_and_the_reverse():
    used = imported("softvq")
    assert used <= declared("align", "data", "diffusers", "lora", "ode", "onnx", "ray", "serve"), (
        "imported, not in pyproject.toml"
    )
    assert declared() - NOT_IMPORTED <= used, "in pyproject.toml, imported nowhere"


def test_constraints_pin_everything_that_dev_brings():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {normal(line.split("==")[0]) for line in lines if "==" in line}
    reached: set[tuple[str, str]] = set()

    def reach(line: str, extras: frozenset[str]) -> None:
        need = Requirement(line)
        if need.marker and not any(need.marker.evaluate({"extra": e}) for e in extras | {""}):
            return
        name = normal(need.name)
        for extra in need.extras | {""}:
            if (name, extra) in reached or re.match("nvidia|cuda|triton", name):
                continue  # the CUDA packages are pinned by torch itself
            reached.add((name, extra))
            if name == "softvq":
                below = EXTRAS[extra] if extra else PROJECT["dependencies"]
            else:
                try:
                    below = metadata.requires(name) or []
                except metadata.PackageNotFoundError:
                    pytest.skip(f"{name} is not installed: needs the extra dev")
            for other in below:
                reach(other, frozenset({extra}))

    reach("softvq[dev]", frozenset())
    needed = {name for name, _ in reached} - {"softvq"}
    assert needed - pinned == set(), "not in constraints.txt"


def test_no_module_needs_unix():
    for path in (ROOT / "softvq").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not UNIX_ONLY & {name.split(".")[0] for name in names}, path


def test_every_file_of_the_package_is_shipped():
    """What git keeps below softvq is Python or matches package-data."""
    git = subprocess.run(
        ["git", "ls-files", "softvq"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if git.returncode:
        pytest.skip("no git checkout")
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["softvq"]
    shipped = {path for pattern in patterns for path in (ROOT / "softvq").glob(pattern)}
    for name in git.stdout.splitlines():
        path = ROOT / name
        assert path.suffix == ".py" or path in shipped, f"{name} is in no pattern of package-data"
        if path.suffix == ".py":
            assert (path.parent / "__init__.py").exists(), f"{PurePath(name).parent}: no package"


def test_the_stub_lists_each_name_once():
    for stub in (ROOT / "softvq").rglob("__init__.pyi"):
        tree = ast.parse(stub.read_text(encoding="utf-8"))
        names = [a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names]
        listed = next(
            ast.literal_eval(n.value)
            for n in tree.body
            if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"
        )
        assert sorted(names) == sorted(listed) and len(set(names)) == len(names), stub
