"""Planning: from a profile and a threshold to a plan, the budget of iterations of every layer. Needs no torch."""

from .plan import Plan, check_plan
from .threshold import CurvePoint, choose_threshold, plan_by_threshold, threshold_curve

__all__ = ["CurvePoint", "Plan", "check_plan", "choose_threshold", "plan_by_threshold", "threshold_curve"]
