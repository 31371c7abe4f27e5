"""Distillation: a teacher and a plan become an E-IIET in two stages."""

from .losses import hidden_state_loss, kl_divergence
from .stages import distill

__all__ = ["distill", "hidden_state_loss", "kl_divergence"]
