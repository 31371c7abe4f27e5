"""Read BLiMP for lm-evaluation-harness."""

from typing import Any

import datasets


def load(blimp: str | None = None, **_: Any) -> datasets.DatasetDict:
    """Load a file of BLiMP's pairs. blimp: a .jsonl or .jsonl.gz. Raises ValueError where there is none."""
    if blimp is None:
        raise ValueError("expected the file of BLiMP's pairs, --task-data blimp=FILE, got none")
    return datasets.load_dataset("json", data_files={"validation": blimp})
