"""The exception and the warning that reach a user as a single line, without a traceback."""


class UserError(ValueError):
    """Something the user can mend. The message names the cause and the mend.

    The command line prints it as one line and exits with code 2.
    """


class SoftVQWarning(UserWarning):
    """A result to be read with care. The command line prints it as one line and goes on."""
