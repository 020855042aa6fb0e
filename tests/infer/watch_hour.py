"""Watch a long video with a small model and print peak memory: run in a process of its own by test_long_video.py."""

import json
import resource
import sys
from pathlib import Path
from typing import Any

from xgenvideo import recipes
from xgenvideo.data import video as videos
from xgenvideo.data.tokenizer import train_tokenizer
from xgenvideo.infer.cite import answer_with_times
from xgenvideo.infer.release import Release
from xgenvideo.models.video_lm import build_model


def main() -> None:
    """Print peak memory in bytes, times cited, and how many frames were turned into pictures."""
    config = recipes.find("tiny")
    tokenizer = train_tokenizer(["a red square moves right"], 320)
    release = Release(Path("nowhere"), build_model(config), tokenizer, config, {"short_side": 256}, {})
    pictures, upright = [0], videos._upright

    def counted(*arguments: Any) -> Any:
        pictures[0] += 1
        return upright(*arguments)

    videos._upright = counted
    answer = answer_with_times(release, Path(sys.argv[1]), "What moves?", max_new_tokens=8)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak": peak, "pictures": pictures[0], "times": [[c.start, c.end] for c in answer.times]}))


if __name__ == "__main__":
    main()
