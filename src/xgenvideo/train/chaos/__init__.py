"""The fault injector: real runs, real faults, and a verdict for every promise that a run makes.

Run: xgv chaos RECIPE --out FOLDER [--kills 100] [--processes 1,2,4] [--faults kill,hang,...] [--seed 0]
"""

from xgenvideo.train.chaos.campaign import run_chaos
from xgenvideo.train.chaos.verdict import Verdict, table

__all__ = ["Verdict", "run_chaos", "table"]
