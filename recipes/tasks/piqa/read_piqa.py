"""Read PIQA for lm-evaluation-harness."""

from pathlib import Path
from typing import Any

import datasets


def load(piqa: str | None = None, **_: Any) -> datasets.DatasetDict:
    """Load a file of PIQA. piqa: NAME.jsonl; NAME-labels.lst beside it has a label a line, unless the rows have one.

    Raises ValueError where there is no file, or its labels are not there or of another number.
    """
    if piqa is None:
        raise ValueError("expected the file of PIQA, --task-data piqa=FILE, got none")
    loaded = datasets.load_dataset("json", data_files={"validation": piqa})
    rows = loaded["validation"]
    if "label" not in rows.column_names:
        path = Path(piqa).with_name(Path(piqa).name.partition(".")[0] + "-labels.lst")
        labels = [int(line) for line in path.read_text().split()]
        if len(labels) != len(rows):
            raise ValueError(
                f"{path}: expected {len(rows)} labels, one for each row of {piqa}, got {len(labels)}"
            )
        loaded["validation"] = rows.add_column("label", labels)
    return loaded
