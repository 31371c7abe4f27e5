"""The losses as plain as they can be written, in float64: loops over tokens and vocabulary, and one in autograd."""

import math

import torch
from torch.nn import functional as F

from iiad.distillation.divergences import TopTarget


def loop_divergence(kind, p, q):
    """Nats between two lists of masses; nothing with no mass counts."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        middle = (a + b) / 2
        if kind == "forward" and a:
            total += a * (math.log(a) - math.log(b))
        if kind == "reverse" and b:
            total += b * (math.log(b) - math.log(a))
        if kind == "jsd" and a:
            total += a * (math.log(a) - math.log(middle)) / 2
        if kind == "jsd" and b:
            total += b * (math.log(b) - math.log(middle)) / 2
    return total


def loop_softmax(logits):
    top = max(logits)
    exps = [math.exp(value - top) for value in logits]
    return [value / math.fsum(exps) for value in exps]


def buckets(masses, kept):
    """The kept tokens' masses and the sum of all others, if there are any."""
    rest = [mass for token, mass in enumerate(masses) if token not in kept]
    return [masses[token] for token in kept] + ([math.fsum(rest)] if rest else [])


def loop_losses(logits, labels, teacher_logits, *, divergence="forward", temperature=1.0, ids=None):
    """CE and T^2 * divergence of (N, V) logits, by double loops; ids: (N, k), the kept tokens."""
    ces, divergences = [], []
    for n, (row, label, other) in enumerate(
        zip(logits.tolist(), labels.tolist(), teacher_logits.tolist(), strict=True)
    ):
        if label >= 0:
            ces.append(-math.log(loop_softmax(row)[label]))
        p = loop_softmax([value / temperature for value in other])
        q = loop_softmax([value / temperature for value in row])
        if ids is not None:
            p, q = buckets(p, ids[n].tolist()), buckets(q, ids[n].tolist())
        divergences.append(loop_divergence(divergence, p, q))
    ce = math.fsum(ces) / max(1, len(ces))
    return ce, temperature**2 * math.fsum(divergences) / len(divergences)


def autograd_loss(
    states, weight, labels, teacher_logits, *, ce_weight, kl_weight, divergence, temperature, ids=None
):
    """The losses of head_loss from whole logits, for autograd to differentiate."""
    logits = states @ weight.t()
    p, q = (teacher_logits / temperature).softmax(-1), (logits / temperature).softmax(-1)
    if ids is not None:
        kept = torch.zeros_like(p).scatter(1, ids, 1.0).bool()
        p, q = (
            torch.cat([x.gather(1, ids), x.masked_fill(kept, 0).sum(-1, keepdim=True)], -1) for x in (p, q)
        )
        if ids.shape[1] == logits.shape[1]:
            p, q = p[:, :-1], q[:, :-1]
    middle = (p + q) / 2
    value = {
        "forward": p * (p / q).log(),
        "reverse": q * (q / p).log(),
        "jsd": (p * (p / middle).log() + q * (q / middle).log()) / 2,
    }[divergence].sum(-1)
    loss = kl_weight * temperature**2 * value.mean()
    return loss + ce_weight * F.cross_entropy(logits, labels, ignore_index=-1) if ce_weight else loss


def top_target(teacher_logits, k, temperature=1.0):
    """The stored signals of a teacher: its k likeliest tokens and the logarithm of the remaining mass."""
    log_probs = (teacher_logits / temperature).log_softmax(-1)
    kept, ids = log_probs.topk(k)
    return TopTarget(ids, kept, log_probs.scatter(1, ids, -math.inf).logsumexp(-1))
