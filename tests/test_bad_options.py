"""Every option of every command refuses what its type cannot be, in one line that names it."""

import shlex
from dataclasses import fields
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from helpers.refusals import refused

from softvq import cli, options
from softvq.fields import plain
from softvq.parser import about, value_of

WORDS = {
    options.count: ("0", "-3", "²", "9" * 30),
    options.counts: (",", "8,0", "8,x", "8,9999999999"),
    options.words: ("", " , "),
    options.seed: ("-1", "1.5"),
    options.number: ("nan", "x", "1,5"),
    options.positive: ("0", "-1", "inf"),
    options.duration: ("0s", "-5m", "5d"),
    options.pixels: ("0", "64x0", "axb", "64x64x64"),
    options.text: ("", "a\0b", "a\ud800b"),
}


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_option_refuses_what_it_cannot_be(command, capsys):
    kind = cli.COMMANDS[command].options
    example = shlex.split(about(kind.__doc__)[1][0].split(" > ")[0])[1:]
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        flag = f"--{field.name.replace('_', '-')}"
        if not field.kw_only or flag in example:
            continue
        value = value_of(hints[field.name])
        if get_origin(plain(hints[field.name])) is Literal:
            known = get_args(plain(hints[field.name]))
            refused(
                capsys, [*example, flag, "nonsense"], flag, known[0], f"softvq {command} --help"
            )
        elif value and value.read in WORDS:
            for word in WORDS[value.read]:
                refused(capsys, [*example, f"{flag}={word}"], flag, f"softvq {command} --help")
        elif value is None:
            refused(capsys, [*example, f"{flag}=perhaps"], flag)
    refused(capsys, [*example, "--no-such-option"], "--no-such-option")


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_what_must_be_given_is_missed_by_its_name(command, capsys):
    required = [f for f in fields(cli.COMMANDS[command].options) if "MISSING" in repr(f.default)]
    required = [f for f in required if "MISSING" in repr(f.default_factory)]
    if required:
        refused(capsys, command.split(), f"softvq {command} --help", "missing")


def test_defaults_are_fine_where_pydantic_is_loaded():
    """cyclopts then checks defaults as well: None is one of an option that may be left out."""
    import pydantic  # noqa: F401

    parsed = cli.command_line().parse(["study", "--data", "x", "--out", "y"])
    assert parsed is not None and parsed[1].criteria is None
