"""`python -m iiad_cli.worker`: several commands, one after another, in one process, up to the first that fails.

Their arguments are a JSON list of lists. So a study's model is trained and evaluated with one import of torch.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

from .main import run

__all__: list[str] = []

POLL_SECONDS = 0.2


def main(commands: list[list[str]]) -> int:
    """Run the commands; return the first exit code that is not 0."""
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    for command in commands:
        sys.argv = ["iiad", *command]
        try:
            run()
        except SystemExit as leaving:
            if leaving.code:
                return int(leaving.code)
    return 0


def _leave_with(parent: int) -> None:
    """Ask this process to save and leave once its parent, the study, is gone: a killed study leaves nobody behind."""
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
