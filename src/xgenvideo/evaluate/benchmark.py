"""A public benchmark on a release: `run_benchmark` reads its annotations and gives its figures as JSON values."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xgenvideo.errors import ConfigError
from xgenvideo.evaluate.answering import answer_questions
from xgenvideo.evaluate.formats import captioned, questions
from xgenvideo.evaluate.provenance import files_sha256, provenance, together
from xgenvideo.evaluate.retrieving import retrieve
from xgenvideo.evaluate.videos import Videos
from xgenvideo.infer.probe import weights_digest
from xgenvideo.infer.release import Release

BENCHMARKS = (*questions.READERS, *captioned.READERS)


def run_benchmark(
    release: Release, name: str, annotations: Path, folder: Path, command: Sequence[str] = (), seed: int = 0
) -> dict[str, Any]:
    """Figures of the benchmark `name` as JSON values, with what they are of.

    `annotations` is the published file (MVBench, TVBench and MLVU: or the folder of them), `folder` holds the videos,
    at any depth. A video that is missing or unreadable is named in the result and counted, and the figures are over the
    rest: a smaller pool is an easier one, so they are then not comparable. Raises ConfigError for an unknown name and
    DataError for annotations of another format, or where no video is found.
    """
    if name not in BENCHMARKS:
        raise ConfigError("--benchmark", name, "must be a benchmark whose format is known", BENCHMARKS)
    started, videos = time.perf_counter(), Videos(Path(folder))
    if name in questions.READERS:
        results = answer_questions(release, questions.READERS[name](Path(annotations)), videos, seed)
    else:
        results = retrieve(release, captioned.READERS[name](Path(annotations)), videos, seed)
    data = {"annotations_sha256": files_sha256(Path(annotations)), "videos_sha256": together(videos.read)}
    about = {"release": release.identity, "seed": seed, "seconds": time.perf_counter() - started}
    of = provenance(release.config, weights_digest(release.model), data, command)
    return {"benchmark": name, **results, **about, **of}
