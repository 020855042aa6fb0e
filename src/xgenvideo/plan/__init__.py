"""What a run costs, as arithmetic without torch: parameters, FLOPs, memory, pipeline, time and the stated run."""

from xgenvideo.plan.render import render
from xgenvideo.plan.report import PlanReport, plan, to_json

__all__ = ["PlanReport", "plan", "render", "to_json"]
