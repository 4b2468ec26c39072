"""Whether a configuration, a flat dataclass, holds what its fields say: types, choices and ranges.

One place for values that come from files, recipes and Python alike. Needs neither torch nor a
network.
"""

import math
from collections.abc import Iterable
from dataclasses import fields
from functools import lru_cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from softvq.errors import UserError

MOST = 2**31 - 1  # of any whole number
DEEPEST = 1000  # blocks of a network
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}

hints = lru_cache(get_type_hints)


def check_fields(
    config: Any,
    prefix: str = "",
    above_0: Iterable[str] = (),
    not_below_0: Iterable[str] = (),
    shares: Iterable[str] = (),
) -> None:
    """Raises UserError for the first field that cannot be; ``prefix`` stands before its name.

    Fields are declared int, float, bool, str, a Literal, a tuple of one of these, or one of these
    or None. A whole number serves as a float, and becomes one, and a list as a tuple. Every float
    is finite, every int at most 2^31 - 1, every field that is or ends in ``depth`` at most 1000.

    above_0, not_below_0, shares: the fields that must be > 0, >= 0, and in 0..1; None passes.
    """
    kind: Any = type(config)
    for field in fields(config):
        value = checked(getattr(config, field.name), hints(kind)[field.name])
        if isinstance(value, Wrong):
            raise UserError(f"{prefix}{field.name} {value}")
        most = DEEPEST if field.name.endswith("depth") else MOST
        if isinstance(value, int) and value > most:
            raise UserError(f"{prefix}{field.name} must be at most {most:,}, got {short(value)}")
        object.__setattr__(config, field.name, value)
    for names, holds, what in (
        (above_0, lambda value: value > 0, "must be above 0"),
        (not_below_0, lambda value: value >= 0, "must be 0 or more"),
        (shares, lambda value: 0 <= value <= 1, "must be in 0 .. 1"),
    ):
        for name in names:
            value = getattr(config, name)
            if value is not None and not holds(value):
                raise UserError(f"{prefix}{name} {what}, got {value}")


class Wrong(str):
    """What is wrong with a value, as the end of a sentence that begins with the field's name."""


def checked(value: Any, declared: Any) -> Any:
    """The value as the declared type has it, or what is :class:`Wrong` with it."""
    kind = get_origin(declared)
    if kind in (Union, UnionType):
        options = [option for option in get_args(declared) if option is not type(None)]
        return None if value is None else checked(value, options[0])
    if kind is Literal:
        known = get_args(declared)
        if not isinstance(value, str) or value not in known:
            return Wrong(f"{short(value)} is none of {', '.join(known)}")
        return value
    if kind is tuple:
        if not isinstance(value, list | tuple):
            return Wrong(f"must be a list, got {short(value)}")
        parts = [checked(part, get_args(declared)[0]) for part in value]
        return next((part for part in parts if isinstance(part, Wrong)), tuple(parts))
    if declared is float and type(value) is int and abs(value) <= MOST:
        value = float(value)
    if type(value) is not declared or (declared is float and not math.isfinite(value)):
        return Wrong(f"must be {NAMES[declared]}, got {short(value)}")
    return value


def short(value: Any) -> str:
    """A value for an error message: one line, not all of a long one."""
    if value is None:
        return "null"
    text = repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:60] + "..."
