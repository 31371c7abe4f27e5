"""Stored signals in a few lines: teacher, text, size and cost."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from iiad.distillation.signal_record import SignalRecord
from iiad.generation.beam_record import BeamRecord
from iiad.progress import format_size

from .tables import format_share

__all__ = ["beams_line", "beams_summary", "signals_line", "signals_summary"]


def signals_line(record: SignalRecord) -> str:
    """Return tokens, bytes per token, size and mass kept, in a line."""
    layout = record.layout
    kept = f"top {layout.top_k} keep {format_share(record.kept_mass, 2)} of the mass"
    if layout.top_k is None:
        kept = "final hidden states keep the whole distribution"
    return (
        f"{record.num_tokens:,} tokens, {layout.bytes_per_token:,.1f} bytes per token, "
        f"{format_size(record.num_bytes)}, {kept}"
    )


def signals_summary(record: SignalRecord, head: str = "") -> RenderableType:
    """Return what `iiad show` prints, under a line about their folder."""
    layout, teacher = record.layout, record.teacher
    states = ", ".join(map(str, layout.hidden_layers))
    hidden = f"hidden states {states} in {layout.compression}" if states else "no hidden states"
    names = ", ".join(record.data.names)
    temperature = "any temperature" if layout.top_k is None else f"temperature {record.temperature:g}"
    lines = [
        f"signals of {teacher.name} ({teacher.fingerprint[:12]}), iterations {_plan(teacher.num_iterations)}, "
        f"in {record.dtype}",
        f"on {names} ({record.data.fingerprint[:12]}), {record.num_blocks:,} blocks of {layout.block_size}",
        signals_line(record),
        f"{temperature}, vocabulary {layout.vocab_size:,}, {hidden}",
        f"{len(record.shards)} of {record.num_shards} shards of {layout.blocks_per_shard:,} blocks; "
        f"iiad {record.iiad_version}",
    ]
    return Group(*map(Text, [head, *lines] if head else lines))


def beams_line(record: BeamRecord) -> str:
    """Return pairs, what was left out, and what did not end, in a line."""
    return (
        f"{record.num_pairs:,} pairs by {record.num_beams} beam{'s' if record.num_beams > 1 else ''}; left out: "
        f"{record.num_left_out:,} long sources, {record.num_empty:,} without text; {record.num_unfinished:,} cut at "
        f"{record.max_new_tokens} tokens"
    )


def beams_summary(record: BeamRecord) -> RenderableType:
    """Return what `iiad show` prints."""
    teacher, names = record.teacher, ", ".join(record.data.names)
    penalty = "" if record.length_penalty is None else f", length penalty {record.length_penalty:g}"
    lines = [
        f"targets of {teacher.name} ({teacher.fingerprint[:12]}), iterations {_plan(teacher.num_iterations)}, "
        f"in {record.dtype}",
        f"of the sources of {names} ({record.data.fingerprint[:12]}), {record.data.num_tokens:,} tokens{penalty}",
        beams_line(record),
        f"iiad {record.iiad_version}",
    ]
    return Group(*map(Text, lines))


def _plan(num_iterations: list[int]) -> str:
    return " ".join(map(str, num_iterations)) if any(num_iterations) else "none"
