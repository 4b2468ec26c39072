"""From a dataclass of options to a command: parsed by cyclopts, explained by the dataclass itself.

Type, choices, default and the docstring under a field say everything about an option, here and in
a recipe, so that nothing is written twice. Help is printed by this file, because what cyclopts
prints it with takes longer to import than all the rest.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib import import_module
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from softvq.errors import UserError
from softvq.fields import choices, default_of, field_help, plain, shown, table
from softvq.options import Value

if TYPE_CHECKING:
    from cyclopts import App

FLAGS = [
    ("--help, -h", "Show this, or the help of a command."),
    ("--version", "Show the version."),
]
Kind = inspect.Parameter
NAMES = {int: "N", float: "NUMBER", str: "TEXT"}


@dataclass(frozen=True)
class Command:
    """``options``: the dataclass.  ``run``: "module:function", which is given one of them.

    ``more``: "module:function" that gives more lines of help.
    """

    options: type
    run: str
    more: str | None = None


def load(where: str) -> Callable[..., Any]:
    """What "module:function" names, imported now."""
    module, _, function = where.partition(":")
    return getattr(import_module(module), function)


def value_of(hint: Any) -> Value | None:
    """The ``Value`` that a type is annotated with, in ``Annotated[..] | None`` too."""
    if get_origin(hint) in (Union, UnionType):
        return next((found for part in get_args(hint) if (found := value_of(part))), None)
    return next(
        (note for note in getattr(hint, "__metadata__", ()) if isinstance(note, Value)), None
    )


def form(hint: Any) -> str:
    """How a value of this type is written: its choices, or a name for it; "" for a flag."""
    if value := value_of(hint):
        return value.name
    known = choices(hint)
    return f"{{{known}}}" if known else NAMES.get(plain(hint), "")


# ---- the command line ----


class CommandLine:
    """All commands, by name; a name of two words is a command of a group.

    ``groups``: the help of every first word, the empty one of softvq itself, with an example.
    """

    def __init__(self, commands: dict[str, Command], groups: dict[str, str], version: str):
        self.commands, self.groups, self.version = commands, groups, f"softvq {version}"

    def parse(self, argv: list[str] | None = None) -> tuple[Command, Any] | None:
        """A command and its options; None if help or the version was asked for, and is printed.

        Raises UserError for anything that is wrong with ``argv``, naming the help to look at.
        """
        argv = sys.argv[1:] if argv is None else argv
        name = self.named(argv)
        chain, rest = name.split(), argv[len(name.split()) :]
        flags = rest[: rest.index("--")] if "--" in rest else rest
        if {"--help", "-h"} & set(flags) and (name in self.commands or flags[0][0] == "-"):
            print(self.help(name))
            return None
        if flags[:1] == ["--version"]:
            print(self.version)
            return None
        import cyclopts

        try:
            if name in self.groups and not rest:
                raise UserError(f"COMMAND is missing, one of {', '.join(self.below(name))}")
            return self.app(name)(argv)
        except (cyclopts.CycloptsError, UserError) as error:
            where = " ".join(["softvq", *chain, "--help"])
            raise UserError(f"{_said(error)}; see {where}") from None

    @cache  # noqa: B019 - there is one command line, and it lives as long as the process
    def app(self, *names: str) -> "App":
        """The app of cyclopts. It knows all commands, and the options of those named."""
        from cyclopts import App

        root = App(
            name="softvq", version=self.version, help_flags=(), version_flags=(),
            result_action="return_value", print_error=False, exit_on_error=False,
        )  # fmt: skip
        apps = {"": root}
        for group in filter(None, self.groups):
            apps[group] = App(name=group, help=self.line(group), help_flags=())
            root.command(apps[group])
        for name, command in self.commands.items():
            group, _, last = name.rpartition(" ")
            function = _function(command) if name in names else print
            apps[group].command(function, name=last, help=self.line(name))
        return root

    def named(self, argv: Sequence[str]) -> str:
        """The command, or else the group, that the first words name; "" if they name none."""
        known = [" ".join(argv[:many]) for many in (2, 1)]
        return next((name for name in known if name in {**self.commands, **self.groups}), "")

    def below(self, group: str) -> list[str]:
        """The commands and groups right below a group."""
        above = group.split()
        names = [name.split() for name in self.commands]
        inside = [name[len(above)] for name in names if name[: len(above)] == above]
        return list(dict.fromkeys(inside))

    def line(self, name: str) -> str:
        """What a command or group does, in a sentence."""
        text = self.commands[name].options.__doc__ if name in self.commands else self.groups[name]
        return about(text)[0].split("\n")[0]

    def help(self, name: str) -> str:
        """The help of a command or group."""
        if name in self.commands:
            command = self.commands[name]
            description, examples = about(command.options.__doc__)
            arguments, required, free = _options(command.options)
            words = [name, *(written for written, _ in [*arguments, *required]), "[OPTIONS]"]
            parts = [table("arguments", arguments), table("options", [*required, *free])]
            if command.more:
                parts.append(load(command.more)())
        else:
            description, examples = about(self.groups[name])
            words = [name, "COMMAND ..."]
            below = [(word, self.line(f"{name} {word}".strip())) for word in self.below(name)]
            parts = [table("commands", below), "" if name else table("options", FLAGS)]
        usage = " ".join(["usage: softvq", *filter(None, words)])
        example = "example:\n" + "\n".join(f"  {line}" for line in examples)
        return "\n\n".join(filter(None, [usage, description, *parts, example]))


def about(doc: str | None) -> tuple[str, list[str]]:
    """A description, and the examples in it: the lines that are commands."""
    lines = inspect.cleandoc(doc or "").splitlines()
    examples = [line.strip() for line in lines if line.strip().startswith("softvq ")]
    return "\n".join(line for line in lines if line.strip() not in examples).strip(), examples


def _function(command: Command) -> Callable[..., tuple[Command, Any]]:
    """The function whose signature cyclopts reads; it returns the command and its options."""
    from cyclopts import Parameter

    options, said = command.options, field_help(command.options)

    def call(*arguments: Any, **flags: Any) -> tuple[Command, Any]:
        return command, options(**signature.bind(*arguments, **flags).arguments)

    parameters = []
    hints = get_type_hints(options, include_extras=True)
    for field in sorted(fields(options), key=lambda field: bool(field.kw_only)):
        hint, value, default = hints[field.name], value_of(hints[field.name]), default_of(field)
        extra: dict[str, Any] = {"help": said.get(field.name), "negative": ()}
        if value:
            extra |= {"converter": _converter(value.read), "n_tokens": value.words}
        kind: Any = Kind.KEYWORD_ONLY if field.kw_only else Kind.POSITIONAL_ONLY
        if not field.kw_only and get_origin(plain(hint)) is tuple:  # any number of words
            kind, hint, extra["required"] = Kind.VAR_POSITIONAL, str, default is MISSING
        if default is MISSING or kind is Kind.VAR_POSITIONAL:
            default = Kind.empty
        # cyclopts checks defaults too, once something else has imported pydantic.
        # What a Value has read is not read again.
        kept: Any = Any if value else plain(hint)
        told = kept | None if default is None else kept
        annotation: Any = Annotated[told, Parameter(**extra)]
        parameters.append(Kind(field.name, kind, default=default, annotation=annotation))
    signature = inspect.Signature(parameters)
    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def _converter(read: Callable[..., Any]) -> Callable[..., Any]:
    return lambda kind, tokens: read(*(token.value for token in tokens))


def _said(error: Exception) -> str:
    """What is wrong, as one sentence."""
    from cyclopts import CycloptsError, MissingArgumentError, UnusedCliTokensError

    text = " ".join(str(error).split())
    if isinstance(error, UnusedCliTokensError):
        text = f"'{' '.join(error.unused_tokens or [])}' is more than the command takes"
    elif isinstance(error, CycloptsError) and error.argument is not None:
        name, msg = error.argument.name, error.msg
        given = name in (error.root_input_tokens or [])
        if isinstance(error, MissingArgumentError):
            text = f"{name}: what should follow it is missing" if given else f"{name} is missing"
        elif msg:
            text = f"{name}: {msg}"
    return text if text.endswith("...") else text.removesuffix(".")


# ---- help ----


def _options(options: type) -> tuple[list[tuple[str, str]], ...]:
    """Arguments, required flags and other flags, each as it is written and what it is.

    A class's own come before those it shares with others.
    """
    said, hints = field_help(options), get_type_hints(options, include_extras=True)
    arguments: list[tuple[str, str]] = []
    required: list[tuple[str, str]] = []
    free: list[tuple[str, str]] = []
    inherited = [cls.__annotations__ for cls in options.__mro__[:-1]]
    depth = {name: i for i, names in reversed(list(enumerate(inherited))) for name in names}
    for field in sorted(fields(options), key=lambda field: depth[field.name]):
        default, shape = default_of(field), form(hints[field.name])
        flag = f"--{field.name.replace('_', '-')} {shape}".strip() if field.kw_only else shape
        if not field.kw_only and default is not MISSING:
            flag = f"[{shape}{' ..' if default == () else ''}]"
        text = said[field.name]
        if default is MISSING:
            (required if field.kw_only else arguments).append((flag, text))
        else:
            value = value_of(hints[field.name])
            if not (default is None or default is False or default in ((), [])):
                usual = value.write(default) if value and value.write else shown(default)
                text = f"{text.rstrip('.')} (default: {usual})."
            (free if field.kw_only else arguments).append((flag, text))
    return arguments, required, free
