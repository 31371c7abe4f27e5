"""Lossless mode: a cheap draft proposes tokens, the teacher checks them all in one call, and the text is its own."""

from .choice import Choice, Estimate, choose_draft
from .choosing import Chooser, verify
from .continuation import continue_with_draft
from .decoding import Speculation, speculate
from .drafts import Draft, candidate_plans, check_draft, check_draft_options, load_draft, self_draft
from .reading import Reader

__all__ = [
    "Choice",
    "Chooser",
    "Draft",
    "Estimate",
    "Reader",
    "Speculation",
    "candidate_plans",
    "check_draft",
    "check_draft_options",
    "choose_draft",
    "continue_with_draft",
    "load_draft",
    "self_draft",
    "speculate",
    "verify",
]
