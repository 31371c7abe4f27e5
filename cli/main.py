"""The `iiad` command: each verb a thin function, every error one clear line."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from iiad.conversion.quantization import hide_load_remarks

from .bench import bench
from .capture import capture
from .check import check
from .convert import convert
from .demo import demo
from .distill import distill
from .env import env
from .evaluate import evaluate
from .generate import generate
from .options import gather_data
from .plan import plan
from .profile import profile
from .show import show
from .train import train
from .validate import validate

__all__ = ["app", "run"]

UNFINISHED = 75  # sysexits' EX_TEMPFAIL: saved, to be continued
INTERRUPTED = "interrupted; a run goes on with --resume"

app = typer.Typer(
    name="iiad",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Distil iterative Transformers: train a teacher, profile its iterations, plan a budget, distil, evaluate.",
    epilog="The pipeline: train -> profile -> plan (-> capture) -> distil -> evaluate, generate, bench, check.  "
    "`iiad demo` runs it all.",
)


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options for every command stand before it: `iiad --debug train ...`."""
    if debug:
        os.environ["IIAD_DEBUG"] = "1"


for command in (
    validate,
    train,
    profile,
    plan,
    capture,
    distill,
    evaluate,
    generate,
    bench,
    check,
    convert,
    show,
    demo,
    env,
):
    app.command()(command)


def run() -> None:
    """Run the command line: exit code 0, 2 for bad input, 1 for a fault of ours, 130 for Ctrl-C, 75 for later."""
    # Read when transformers is imported, which the commands do: its bars and remarks would stand between ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    hide_load_remarks()
    sys.exit(_guarded())


def _guarded() -> int:
    # typer brings a click of its own in newer versions; its public errors tell which one.
    usage_error: Any = typer.BadParameter.__mro__[2]
    try:
        # Not standalone: our own boundary decides what an error looks like.
        code = app(gather_data(sys.argv[1:]), standalone_mode=False) or 0
        return _report(INTERRUPTED, 130) if code == 130 else code
    except (typer.Abort, KeyboardInterrupt):
        return _report(INTERRUPTED, 130)
    except usage_error as error:
        return _report(" ".join(error.format_message().split()), 2)
    except BrokenPipeError:
        # The reader went away (`| head`); what it did not want cannot be flushed at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _report_exception(error)


def _report_exception(error: Exception) -> int:
    from iiad.errors import InputError, Unfinished

    if os.environ.get("IIAD_DEBUG"):
        raise error
    if isinstance(error, InputError):
        return _report(str(error), 2)
    if isinstance(error, Unfinished):
        return _report(str(error), UNFINISHED)
    line = " ".join(str(error).split())
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return _report(f"{where}{error.strerror or line}", 2)
    return _report(f"{type(error).__name__}: {line} (a fault of iiad's; `iiad --debug` shows where)", 1)


def _report(line: str, code: int) -> int:
    process = os.environ.get("RANK", "0")
    which = f"[process {process}] " if process != "0" else ""
    print(f"iiad: {which}{line}\n", end="", file=sys.stderr)  # one write: several processes may speak at once
    return code
