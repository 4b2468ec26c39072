"""The command line: parses, calls, prints. torch is imported inside commands: help is instant."""

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TextIO

from softvq import __version__, options
from softvq.errors import SoftVQWarning, UserError, first_started
from softvq.parser import Command, CommandLine, load

if TYPE_CHECKING:
    from softvq.commands import Outcome

GROUPS = {
    "": """Photos to a few continuous tokens and back, and new photos from new tokens.

    softvq demo --out demo
    """,
    "train": """Train a tokenizer, a generator or a probe.

    softvq train tokenizer --data photos --out runs/tokenizer
    """,
    "evaluate": """Measure reconstructions, drawn pictures, or the tokens themselves.

    softvq evaluate reconstruction --data photos --features eye
    """,
    "rollout": """See and change the stage of a roll-out: shadow, canary, full.

    softvq rollout status --plan rollout.yaml
    """,
}
COMMANDS = {
    "demo": Command(options.Demo, "softvq.commands:demo"),
    "train tokenizer": Command(
        options.TrainTokenizer, "softvq.commands:train_tokenizer", "softvq.recipe:tokenizer_keys"
    ),
    "train generator": Command(
        options.TrainGenerator, "softvq.commands:train_generator", "softvq.recipe:generator_keys"
    ),
    "train probe": Command(
        options.TrainProbe, "softvq.commands:train_probe", "softvq.recipe:probe_keys"
    ),
    "shard": Command(options.Shard, "softvq.commands:shard"),
    "encode": Command(options.Encode, "softvq.commands:encode"),
    "decode": Command(options.Decode, "softvq.commands:decode"),
    "reconstruct": Command(options.Reconstruct, "softvq.commands:reconstruct"),
    "generate": Command(options.Generate, "softvq.commands:generate"),
    "augment": Command(options.Augment, "softvq.commands:augment"),
    "evaluate reconstruction": Command(
        options.EvaluateReconstruction, "softvq.commands:evaluate_reconstruction"
    ),
    "evaluate generation": Command(
        options.EvaluateGeneration, "softvq.commands:evaluate_generation"
    ),
    "evaluate latents": Command(options.EvaluateLatents, "softvq.commands:evaluate_latents"),
    "evaluate statistics": Command(
        options.EvaluateStatistics, "softvq.commands:evaluate_statistics"
    ),
    "cost": Command(options.Cost, "softvq.commands:cost"),
    "plan": Command(options.Plan, "softvq.commands:plan"),
    "study": Command(options.Study, "softvq.commands:study"),
    "explain": Command(options.Explain, "softvq.commands:explain"),
    "import": Command(options.Import, "softvq.commands:import_model"),
    "export": Command(options.Export, "softvq.commands:export_model"),
    "verify": Command(options.Verify, "softvq.commands:verify"),
    "serve": Command(options.Serve, "softvq.commands:serve"),
    "rollout status": Command(options.RolloutStatus, "softvq.commands:rollout_status"),
    "rollout promote": Command(options.RolloutPromote, "softvq.commands:rollout_promote"),
    "rollout hold": Command(options.RolloutHold, "softvq.commands:rollout_hold"),
    "rollout back": Command(options.RolloutBack, "softvq.commands:rollout_back"),
    "monitor": Command(options.Monitor, "softvq.commands:monitor"),
    "info": Command(options.Info, "softvq.commands:info"),
    "recipes": Command(options.Recipes, "softvq.commands:recipes"),
    "classes": Command(options.Classes, "softvq.commands:classes"),
    "completion": Command(options.Completion, "softvq.cli:completion"),
}


@cache
def command_line() -> CommandLine:
    """All commands, ready to parse."""
    return CommandLine(COMMANDS, GROUPS, __version__)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code. What the user can mend becomes one line on stderr."""
    warnings.formatwarning = _format_warning
    try:
        parsed = command_line().parse(argv)
        if parsed is None:
            return 0
        command, asked = parsed
        with _silence(asked):
            if getattr(asked, "device", "auto") != "auto":
                load("softvq.device:use_device")(asked.device)
            outcome = load(command.run)(asked)
        if outcome is None:
            return 130  # stopped, and it has said so
        if not first_started():
            return 0
        if getattr(asked, "json", False):
            print(json.dumps(outcome.facts))
        elif outcome.text and not getattr(asked, "quiet", False):
            print(outcome.text)
        return 0
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("softvq: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has gone, as in `softvq ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        # safetensors reports a full disk as an error of its own; the text is the same.
        if "No space left on device" in str(error):
            return _fail("disk full; free some space and repeat the command")
        if isinstance(error, OSError) and error.filename is not None:
            return _fail(f"{error.filename}: {error.strerror}")
        raise


@contextlib.contextmanager
def _silence(asked: Any) -> Iterator[None]:
    """With --quiet a command at work only warns; with --json stdout is for the result."""
    with contextlib.ExitStack() as stack:
        if getattr(asked, "quiet", False):
            stack.enter_context(warnings.catch_warnings())  # puts showwarning back
            warnings.showwarning = partial(_warn, sys.stderr)
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        elif getattr(asked, "json", False):
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


def _fail(message: str) -> int:
    print(f"softvq: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _warn(
    stderr: TextIO,
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own warnings on ``stderr``; those of libraries are not heard."""
    if issubclass(category, SoftVQWarning):
        stderr.write(_format_warning(message, category, filename, lineno, line))


_format_foreign = warnings.formatwarning


def _format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Our own warnings as one line, as errors are; those of libraries stay as they are."""
    if not issubclass(category, SoftVQWarning):
        return _format_foreign(message, category, filename, lineno, line)
    return f"softvq: warning: {' '.join(str(message).split())}\n"


def completion(asked: options.Completion) -> "Outcome":
    """What a shell completes the command line with."""
    from softvq.commands import Outcome

    return Outcome(command_line().app(*COMMANDS).generate_completion(shell=asked.shell))
