"""One run, as frozen dataclasses. A recipe (recipes/) returns a RunConfig; `section.field=value` overrides one field.

No torch here: the planner and `xgv --help` read configs too.
"""

from xgenvideo.config.check import check
from xgenvideo.config.read import from_dict, load, override
from xgenvideo.config.sections import (
    DataConfig,
    DecoderConfig,
    LayoutConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ResamplerConfig,
    RopeScaling,
    RunConfig,
    SafetyConfig,
    TrainConfig,
    VisionConfig,
)

__all__ = [
    "DataConfig",
    "DecoderConfig",
    "LayoutConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "ResamplerConfig",
    "RopeScaling",
    "RunConfig",
    "SafetyConfig",
    "TrainConfig",
    "VisionConfig",
    "check",
    "from_dict",
    "load",
    "override",
]
