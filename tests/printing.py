"""What a rich renderable looks like on a terminal."""

import io

from rich.console import Console


def printed(renderable, width=110, encoding="utf-8", **options):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    Console(file=stream, width=width, **options).print(renderable)
    stream.flush()
    return raw.getvalue().decode(encoding)
