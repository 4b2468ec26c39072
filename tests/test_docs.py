"""What README and docs say: commands that parse, links that lead somewhere, imports that exist."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
from test_imports import MODULES, ROOMS

from softvq.cli import COMMANDS, command_line

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")])
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.M | re.S)
INLINE = re.compile(r"`(softvq\s[^`]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands_of(text: str) -> list[str]:
    """Lines that begin with softvq, also after torchrun."""
    lines = [" ".join(line.split()) for line in text.replace("\\\n", " ").splitlines()]
    lines = [re.sub(r"^torchrun .*-m softvq ", "softvq ", line) for line in lines]
    return [line for line in lines if line.startswith("softvq ")]


def quoted_in(text: str) -> list[str]:
    """Commands quoted within a text: a name, perhaps with some options, not always all of it."""
    return [" ".join(found.split()) for found in INLINE.findall(FENCE.sub("", text))]


def test_commands_are_found():
    text = (
        "```sh\nsoftvq encode --data a \\\n   --out b  # why\n```\nSee `softvq\ncost`.\n\n"
        "    torchrun --nproc-per-node 2 -m softvq demo\n"
    )
    assert commands_of(text) == ["softvq encode --data a --out b # why", "softvq demo"]
    assert quoted_in(text) == ["softvq cost"]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_command_in_the_docs_parses(page):
    text, line = page.read_text(encoding="utf-8"), command_line()
    for command in commands_of(text):
        line.parse(shlex.split(command, comments=True)[1:])
    for command in quoted_in(text):
        words = command.split()[1:]
        name = line.named(words)
        assert name or words[0].startswith("-"), f"{command}: no such command"
        known = {"--help", "--version", *re.findall(r"--[\w-]+", line.help(name))}
        given = set(re.findall(r"--[\w-]+", command))
        assert name not in COMMANDS or given <= known, f"{command}: {given - known}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_link_leads_to_a_file(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if not target.startswith(("http", "mailto:")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_python_in_the_docs_imports_what_there_is(page):
    for _, language, code in FENCE.findall(page.read_text(encoding="utf-8")):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("softvq"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_files_named_in_the_docs_exist(page):
    named = re.findall(
        r"`?((?:softvq|tests|tools|benchmarks|docs|examples)/[\w/.-]+\.\w+)`?",
        page.read_text(encoding="utf-8"),
    )
    for name in named:
        if name.split("/")[-1].split(".")[0].isupper():
            continue  # a place for a name
        assert (ROOT / name).exists(), f"{name} is not there"


def test_the_reference_has_every_module_that_it_names():
    named = [
        name
        for page in ROOT.glob("docs/api/*.md")
        for name in re.findall(r"^::: softvq\.(\S+)$", page.read_text(encoding="utf-8"), re.M)
    ]
    assert len(named) == len(set(named)) > 30
    assert {*named} <= {*MODULES}


def test_the_picture_shows_every_room():
    """Else draw it again: python tools/rooms.py."""
    picture = (ROOT / "docs" / "rooms.svg").read_text(encoding="utf-8")
    shown = {name.rstrip("/") for name in re.findall(r"bold\">([^<]+)<", picture)}
    assert shown == {name.rstrip(".") for line in ROOMS for name in line.split()}


def test_every_script_is_in_its_index():
    for folder in ("benchmarks", "tools"):
        index = (ROOT / folder / "README.md").read_text(encoding="utf-8")
        for script in (ROOT / folder).glob("*.py"):
            assert f"`{script.name}`" in index, f"{folder}/README.md does not name {script.name}"
