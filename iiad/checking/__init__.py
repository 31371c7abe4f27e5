"""Proofs for any checkpoint: what must hold of a model, each with the figure that decides. Writes check.json."""

from .artefact import Check, CheckResult, CheckSettings
from .runner import CLAIMS, check_model

__all__ = ["CLAIMS", "Check", "CheckResult", "CheckSettings", "check_model"]
