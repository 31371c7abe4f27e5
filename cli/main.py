"""The `iiad` command: its verbs, and errors as one line and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from iiad import __version__
from iiad.conversion.quantization import hide_load_remarks
from iiad.errors import InputError, Unfinished, printable, require_printable
from iiad.memory import is_out_of_memory

from .bench import bench
from .capture import capture
from .check import check
from .convert import convert
from .demo import demo
from .distill import distill
from .env import env
from .evaluate import evaluate
from .generate import generate
from .options import gather_data, locks
from .output import with_output_options
from .plan import plan
from .profile import profile
from .report import report
from .show import show
from .study import study
from .train import train
from .validate import validate

__all__ = ["app", "run"]

FAULT, BAD_INPUT, UNFINISHED, INTERRUPTED = 1, 2, 75, 130
"""Exit codes. 75 is sysexits' EX_TEMPFAIL: saved, to be continued."""

# Read when torch and transformers are imported, which the commands do; what the user has set stays.
ENVIRONMENT = {
    # Waiting threads of torch spin briefly, then sleep: by default they spin against whatever else wants the cores.
    # Figures in docs/performance.md, "Threads".
    "GOMP_SPINCOUNT": "1000",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # they would stand between ours
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "USE_HUB_KERNELS": "NO",  # some types of models would fetch compiled code of the hub's and run it
}

# typer brings a click of its own in newer versions; its public errors tell which one.
USAGE_ERROR: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="iiad",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Distil iterative Transformers: train a teacher, profile its iterations, plan a budget, distil, evaluate.",
    epilog="The pipeline: train -> profile -> plan (-> capture) -> distil -> evaluate, generate, bench, check.  "
    "`iiad demo` runs it all.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"iiad {__version__}")
        raise typer.Exit()


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Options of all commands come first: `iiad --debug train ...`."""
    if debug:
        os.environ["IIAD_DEBUG"] = "1"


# fmt: off
COMMANDS = (
    validate, train, profile, plan, capture, distill, evaluate, generate, bench, check, convert, show, report, study,
    demo, env,
)
# fmt: on
for command in COMMANDS:
    app.command()(with_output_options(command))


def run() -> None:
    """Run the command line: exit code 0, 1 for a fault, 2 for bad input, 75 to be continued, 130 for Ctrl-C."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    hide_load_remarks()
    try:
        require_printable(sys.argv[1:], "arguments")
        # Not standalone: errors become lines here. Ctrl-C is code 130 then.
        with locks:
            code, line = app(gather_data(sys.argv[1:]), standalone_mode=False) or 0, ""
    except BrokenPipeError:
        # The reader went away (`| head`), and the rest cannot be flushed at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code, line = 0, ""
    except (Exception, KeyboardInterrupt) as error:
        code, line = _describe(error)
        if code in (1, 2) and os.environ.get("IIAD_DEBUG") and not isinstance(error, USAGE_ERROR):
            raise
    if code == INTERRUPTED:
        line = "interrupted; a run goes on with --resume"
    if line:
        rank = os.environ.get("RANK", "0")
        process = f"[process {rank}] " if rank != "0" else ""
        # One write: several processes may speak at once.
        sys.stderr.write(f"iiad: {process}{printable(line)}\n")
    sys.exit(code)


def _describe(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the line for an error."""
    line = " ".join(str(error).split())
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return INTERRUPTED, ""
    if isinstance(error, USAGE_ERROR):
        return BAD_INPUT, " ".join(error.format_message().split())
    if isinstance(error, InputError):
        return BAD_INPUT, str(error)
    if is_out_of_memory(error):
        return BAD_INPUT, f"out of memory: {line or 'a smaller model, batch or context helps'}"
    if isinstance(error, Unfinished):
        return UNFINISHED, str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return BAD_INPUT, f"{where}{error.strerror or line}"
    return FAULT, f"{type(error).__name__}: {line} (a fault of iiad's; `iiad --debug` shows where)"
