"""What training and distillation learn from: next tokens, a teacher's distribution, its hidden states. Torch only."""

from .divergences import DIVERGENCES, forward_kl, jensen_shannon, reverse_kl
from .head import HeadLoss, choose_chunk_tokens, head_loss, next_token_labels
from .hidden import HIDDEN_LOSSES, hidden_state_loss
from .targets import FullTarget, TopTarget

__all__ = [
    "DIVERGENCES",
    "HIDDEN_LOSSES",
    "FullTarget",
    "HeadLoss",
    "TopTarget",
    "choose_chunk_tokens",
    "forward_kl",
    "head_loss",
    "hidden_state_loss",
    "jensen_shannon",
    "next_token_labels",
    "reverse_kl",
]
