"""`python -m iiad_cli.worker`: several commands, one after another, in one process, up to the first that fails.

Their arguments are a JSON list of lists. So a study's model is trained and evaluated with one import of torch.
"""

from __future__ import annotations

import json
import sys

from .main import run

__all__: list[str] = []


def main(commands: list[list[str]]) -> int:
    """Run the commands; return the first exit code that is not 0."""
    for command in commands:
        sys.argv = ["iiad", *command]
        try:
            run()
        except SystemExit as leaving:
            if leaving.code:
                return int(leaving.code)
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
