"""Planning: from a profile and a threshold or targets to a plan, the budget of iterations of every layer.

Needs no torch; a new plan takes a second, for the profile holds all scores.
"""

from .baselines import baseline_plans
from .bounds import Bounds, read_pins
from .costs import PlanCost, cost_of
from .curve import CurvePoint, FrontPoint, choose_threshold, find_knee, pareto_front, threshold_curve
from .latency import LatencyTable, check_latency
from .plan import Plan, check_plan
from .planner import load_latency, make_plan, plan_by_target
from .prediction import predicted_loss
from .stability import Stability, keep_frequency, measure_stability
from .targets import Targets
from .threshold import normalize_scores, plan_by_threshold, threshold_budget
from .verification import Candidate, Verification, candidates

__all__ = [
    "Bounds",
    "Candidate",
    "CurvePoint",
    "FrontPoint",
    "LatencyTable",
    "Plan",
    "PlanCost",
    "Stability",
    "Targets",
    "Verification",
    "baseline_plans",
    "candidates",
    "check_latency",
    "check_plan",
    "choose_threshold",
    "cost_of",
    "find_knee",
    "keep_frequency",
    "load_latency",
    "make_plan",
    "measure_stability",
    "normalize_scores",
    "pareto_front",
    "plan_by_target",
    "plan_by_threshold",
    "predicted_loss",
    "read_pins",
    "threshold_budget",
    "threshold_curve",
]
