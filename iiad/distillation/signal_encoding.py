"""The binary form of signals: what is rounded, and by how much.

Legend: T tokens of a block, k entries kept, n hidden states kept, D model width; ... any leading dimensions.

A token's distribution p is kept as k + 1 cells: the k likeliest tokens, in falling order, and the mass of all others,
the tail. Stored are the k *gaps* below the likeliest, log p_1 - log p_j for j = 2, ..., k and for the tail, in steps
of 2^-10 nat; log p_1 itself follows from the sum being 1 (ours). So what is read is a distribution again, whatever
was rounded: its cells sum to 1 up to float32.

A gap is off by at most 2^-11 nat, a log-probability by at most 2^-10, and KL(true || stored) over the cells is at
most 2^-23 = 1.2e-7 nats (Hoeffding's lemma on an interval of 2^-10); measured on random logits: 3e-8. float16
log-probabilities of the same two bytes have ten times that, and with the tail taken as 1 - sum up to 1e-3 on peaked
distributions. One byte a gap would save a quarter of the disk and cost 1e-4. Cells 40 nats below the first or
further are stored as 40 below: a mass of 4e-18.

KL over the cells is never above KL over the vocabulary (merging tokens loses information). With what is stored in p's
place that holds up to a thousandth of E_p|log(p / q)|, since each probability is off by at most so much.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .signal_record import Compression

__all__ = ["decode_gaps", "decode_ids", "decode_states", "encode_gaps", "encode_ids", "encode_states"]

STEPS_PER_NAT = 1024
LOWEST_GAP = -24.0
"""The tail may outweigh the likeliest token, by at most log V < 17 nats."""
HIGHEST_CODE, NO_TAIL = 65534, 65535


def encode_gaps(gaps: Tensor) -> np.ndarray:
    """gaps: (..., k) in nats, of entries 2, ..., k and then the tail, +inf for none -> uint16 of that shape."""
    codes = ((gaps.float() - LOWEST_GAP) * STEPS_PER_NAT).round_().clamp_(0, HIGHEST_CODE)
    codes[..., -1].masked_fill_(gaps[..., -1] == torch.inf, NO_TAIL)
    return codes.int().cpu().numpy().astype("<u2")


def decode_gaps(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """codes: (..., k) as `encode_gaps` makes them -> log-probabilities (..., k), tail (...), float32, summing to 1.

    The tail is -inf where nothing was left out (k = V) or what was had no mass.
    """
    below = codes * np.float32(-1 / STEPS_PER_NAT) - np.float32(LOWEST_GAP)  # exact: 16 bits and a sign
    tail = np.where(codes[..., -1] == NO_TAIL, np.float32(-np.inf), below[..., -1])  # (...)
    weights = np.exp(below[..., :-1]).sum(-1, dtype=np.float64) + np.exp(tail, dtype=np.float64)
    first = -np.log1p(weights)  # log p_1
    log_probs = np.empty(codes.shape, np.float32)
    log_probs[..., 0] = first
    log_probs[..., 1:] = below[..., :-1] + first[..., None]
    return log_probs, (tail + first).astype(np.float32)


def encode_ids(ids: Tensor, block: np.ndarray) -> None:
    """Put token ids (..., T, k) into blocks (...) of `SignalLayout.block_dtype`."""
    numbers = ids.cpu().numpy()
    block["ids"] = numbers & 0xFFFF
    if "high_ids" in (block.dtype.names or ()):
        block["high_ids"] = numbers >> 16


def decode_ids(block: np.ndarray) -> np.ndarray:
    """Blocks (...) -> token ids (..., T, k), int64."""
    ids = block["ids"].astype(np.int64)
    if "high_ids" in (block.dtype.names or ()):
        ids |= block["high_ids"].astype(np.int64) << 16
    return ids


def encode_states(states: Tensor, compression: Compression, block: np.ndarray) -> None:
    """Put hidden states (..., n, T, D) into blocks (...).

    bfloat16: to nearest, off by at most 2^-8 of each number. int8: 127 steps up to a token's largest number, off by
    at most 1/254 of that (ours). Channels of very different sizes are to be divided by scales before.
    """
    if compression == "bfloat16":
        rounded = states.to(torch.bfloat16).view(torch.int16)
        block["states"] = rounded.cpu().numpy().view(np.uint16)
        return
    states = states.float()
    scales = states.abs().amax(-1) / 127  # (..., n, T)
    # A token of zeros has the scale 0, and stays zeros.
    steps = (states / scales.clamp(min=torch.finfo(torch.float32).tiny)[..., None]).round_().clamp_(-127, 127)
    block["states"] = steps.to(torch.int8).cpu().numpy()
    block["scales"] = scales.cpu().numpy()


def decode_states(block: Any, compression: Compression, which: list[int]) -> Tensor:
    """A block -> those of its hidden states at the positions `which`, (len(which), T, D).

    In bfloat16, or float32 from int8.
    """
    states = np.stack([block["states"][position] for position in which])  # reads no others
    if compression == "bfloat16":
        return torch.from_numpy(states.astype(np.uint16).view(np.int16)).view(torch.bfloat16)
    scales = torch.from_numpy(np.array(block["scales"][which], np.float32))
    return torch.from_numpy(states).float().mul_(scales[..., None])
