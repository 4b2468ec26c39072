"""The exception and the warning that reach a user as a single line, without a traceback."""


class UserError(ValueError):
    """Something the user can mend. The message names the cause and the mend.

    The command line prints it as one line and exits with code 2.
    """


class SoftVQWarning(UserWarning):
    """A result to be read with care. The command line prints it as one line and goes on."""


def check_ranges(config: object, section: str, **ranges: tuple[float, float]) -> None:
    """Raises UserError for a field outside its range, ends included; NaN is outside of every one.

    ``section``: where users find the fields, as ``train``; "" for the top of a recipe.
    """
    for name, (low, high) in ranges.items():
        if not low <= (value := getattr(config, name)) <= high:
            key = f"{section}.{name}" if section else name
            raise UserError(f"{key} must be in {low:,} .. {high:,}, got {value:,}")
