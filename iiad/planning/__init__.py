"""Planning: from a profile and a threshold or targets to a plan, the number of iterations of every layer.

Needs no torch; a new plan takes a second, for the profile holds all scores.
"""

from .baselines import baseline_plans
from .costs import PlanCost, compute_cut, cost_of, overhead_cut, predicted_loss
from .curve import (
    CurvePoint,
    FrontPoint,
    TradeOff,
    choose_threshold,
    find_knee,
    pareto_front,
    threshold_curve,
    trade_off,
)
from .family import Family, FamilyPlan, even_family, make_adaptive_family, make_family, read_cuts
from .latency import LatencyTable, check_latency, load_latency
from .plan import Plan, check_plan
from .search import make_plan, plan_by_target
from .stability import Stability, keep_frequency, measure_stability
from .targets import Bounds, Targets, read_pins
from .threshold import normalize_scores, plan_by_threshold, threshold_budget
from .verification import Candidate, Verification, candidates

__all__ = [
    "Bounds",
    "Candidate",
    "CurvePoint",
    "Family",
    "FamilyPlan",
    "FrontPoint",
    "LatencyTable",
    "Plan",
    "PlanCost",
    "Stability",
    "Targets",
    "TradeOff",
    "Verification",
    "baseline_plans",
    "candidates",
    "check_latency",
    "check_plan",
    "choose_threshold",
    "compute_cut",
    "cost_of",
    "even_family",
    "find_knee",
    "keep_frequency",
    "load_latency",
    "make_adaptive_family",
    "make_family",
    "make_plan",
    "measure_stability",
    "normalize_scores",
    "overhead_cut",
    "pareto_front",
    "plan_by_target",
    "plan_by_threshold",
    "predicted_loss",
    "read_cuts",
    "read_pins",
    "threshold_budget",
    "threshold_curve",
    "trade_off",
]
