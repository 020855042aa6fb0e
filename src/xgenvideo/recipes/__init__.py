"""Recipes: each a function that returns a RunConfig. `find` is the one place that knows their names."""

from collections.abc import Callable

from xgenvideo.config import RunConfig, check
from xgenvideo.errors import ConfigError
from xgenvideo.recipes.one_gpu import one_gpu
from xgenvideo.recipes.tiny import tiny
from xgenvideo.recipes.video_30b import video_30b

RECIPES: dict[str, Callable[[], RunConfig]] = {"tiny": tiny, "one_gpu": one_gpu, "video_30b": video_30b}


def find(name: str) -> RunConfig:
    """The recipe called `name`, checked. Raises ConfigError listing the names."""
    if name not in RECIPES:
        raise ConfigError("recipe", name, "no such recipe", RECIPES)
    config = RECIPES[name]()
    check(config)
    return config
