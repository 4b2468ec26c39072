"""What a dataclass says of its fields: help, plain types, defaults; for options and recipes."""

import ast
import inspect
import textwrap
from dataclasses import MISSING, Field
from functools import lru_cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

WIDTH = 96
COLUMN = 26  # where the explanations begin


@lru_cache
def field_help(cls: type) -> dict[str, str]:
    """What the fields of a dataclass and its bases are: the docstring under each, as one line."""
    found: dict[str, str] = {}
    for base in reversed(getattr(cls, "described_by", cls).__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for at, after in zip(body.body, body.body[1:], strict=False):
            match at, after:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(said))),
                ):
                    found[name] = " ".join(said.split())
    return found


def plain(hint: Any) -> Any:
    """A type without ``Annotated`` and ``None``."""
    if get_origin(hint) is Annotated:
        return plain(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return plain(next(part for part in get_args(hint) if part is not NoneType))
    return hint


def choices(hint: Any) -> str:
    """The choices of a ``Literal``, with commas; "" for any other type."""
    kind = plain(hint)
    return ",".join(map(str, get_args(kind))) if get_origin(kind) is Literal else ""


def default_of(field: Field[Any]) -> Any:
    """A field's default; MISSING if it must be given."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def shown(value: Any) -> str:
    """A default as it is written on a command line or in a recipe."""
    match value:
        case bool() | None:
            return {True: "true", False: "false", None: "null"}[value]
        case tuple() | list():
            return ",".join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(title: str, rows: list[tuple[str, str]]) -> str:
    """Two columns under a title; nothing if there are no rows."""
    lines = [f"{title}:"] if rows else []
    for left, right in rows:
        wrapped = textwrap.wrap(right, WIDTH - COLUMN, break_long_words=False)
        if len(left) + 4 > COLUMN:
            lines.append(f"  {left}")
        else:
            lines.append(f"  {left}".ljust(COLUMN) + "".join(wrapped[:1]))
            wrapped = wrapped[1:]
        lines += [" " * COLUMN + line for line in wrapped]
    return "\n".join(line.rstrip() for line in lines)
