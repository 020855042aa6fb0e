"""Alignment: how well each judge tells a clip's own caption from another clip's (area under the ROC curve).

Run: python bench/alignment.py FOLDER --model PATH --json bench/results/alignment.json. FOLDER holds real clips and
captions.jsonl (a line: video, caption), read in place; every caption is compared with every clip. `--model`, any
number of times, is a CLIP or SigLIP folder or a release. `--generated` measures the same on clips of the generator,
the twins left out: their captions name the same things.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from fair import write

from xgenvideo.curate.alignment import AlignmentModels, one_thread_each
from xgenvideo.curate.clips import Clip
from xgenvideo.curate.scorers import PairScorer, open_scorer
from xgenvideo.curate.settings import CurateSettings
from xgenvideo.data.generate import generate
from xgenvideo.data.video import sample_video


def read_pairs(folder: Path, listing: str, most: int) -> tuple[list[Clip], list[str]]:
    """Decoded clips and their captions; of twins the first."""
    settings = CurateSettings()
    rows = [json.loads(line) for line in (folder / listing).read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if not str(row.get("key", "")).endswith("-b")][:most]
    clips = []
    for row in rows:
        sampled = sample_video(folder / row["video"], settings.fps, settings.max_frames, 0.0, settings.short_side)
        clips.append(Clip.from_sampled(sampled, settings.jpeg_quality))
    return clips, [row["caption"] for row in rows]


def measure(scorer: PairScorer, clips: list[Clip], captions: list[str]) -> dict[str, Any]:
    """The area under the curve: the share of (own, other) pairs of scores in which the own is higher."""
    frames = CurateSettings().alignment_frames
    with one_thread_each():
        vectors = scorer.embed(captions)
        seen = [scorer.see_clip(clip, frames) for clip in clips]
        scores = np.array([[scorer.score(shown, vector) for vector in vectors] for shown in seen])
    own, others = np.diag(scores), scores[~np.eye(len(clips), dtype=bool)]
    above = (own[:, None] > others[None]).mean() + 0.5 * (own[:, None] == others[None]).mean()
    return {"pairs": len(clips), "auc": round(float(above), 4)}


def main() -> None:
    """Print the figures, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", action="append", default=[], help="a CLIP or SigLIP folder, or a release")
    parser.add_argument("--generated", type=int, default=0, help="this many generated clips, half of them twins")
    parser.add_argument("--clips", type=int, default=88)
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    cv2.setNumThreads(1)
    judges: dict[str, PairScorer] = {"offline": AlignmentModels()}
    judges |= {Path(path).name: open_scorer(path) for path in parsed.model}
    sets = {"real": read_pairs(parsed.folder, "captions.jsonl", parsed.clips)}
    with tempfile.TemporaryDirectory() as folder:
        if parsed.generated:
            generate(Path(folder), clips=parsed.generated, seed=31, defect_share=0.0, processes=1)
            sets["generated"] = read_pairs(Path(folder), "pairs.jsonl", parsed.generated)
    figures = {name: {label: measure(judge, *pairs) for label, pairs in sets.items()} for name, judge in judges.items()}
    print(json.dumps(figures, indent=1))
    if parsed.json:
        write(parsed.json, figures)


if __name__ == "__main__":
    main()
