"""Steps that hold inputs against one another: captions of one template, near duplicates, concepts.

Each goes through all inputs twice: it gathers few bytes of every one, then decides.
"""

import base64
from array import array
from collections.abc import Iterator
from itertools import chain
from types import TracebackType

import numpy as np

from xgenvideo.curate.balance import count_concepts, judge_concepts, read_concepts
from xgenvideo.curate.captions import Crowds, judge_template
from xgenvideo.curate.clips import Clip, read_thumbs
from xgenvideo.curate.duplicates import SKETCH, Fingerprint, Sketches, find_duplicates, fingerprint
from xgenvideo.curate.inputs import SKETCHED, Inputs, Item
from xgenvideo.curate.settings import Decision
from xgenvideo.curate.stages import Workplace

CONTENT = 16  # bytes of a content's hash that name its clip


def judge_templates(inputs: Inputs, work: Workplace) -> None:
    """By how many captions read almost like each."""
    crowds = Crowds(work.folder / "captions.part")
    for item in _kept(inputs):
        crowds.add(item.pair.caption)
    others = crowds.others()
    for place, item in enumerate(_change_kept(inputs)):
        item.decisions.append(judge_template(int(others[place]), work.settings))


def judge_balance(inputs: Inputs, work: Workplace) -> None:
    """Of what many captions say a share."""
    settings = work.settings
    known = read_concepts(settings.concepts) if settings.concepts else None
    counts = count_concepts((item.pair.caption for item in _kept(inputs)), known)
    for item in _change_kept(inputs):
        pair = item.pair
        item.decisions.append(judge_concepts(pair.key, pair.caption, counts, settings.max_per_concept, known))


def judge_duplicates(inputs: Inputs, work: Workplace) -> None:
    """Of clips with the same pictures in the same order the largest is kept, or the first of the same size."""
    with _Clips(work) as clips:
        for item in _kept(inputs):
            clips.add(item)
        found = find_duplicates(clips.sketches(), clips.read, work.settings, clips.read_clip)
    stay = {kept for kept, _ in found.values()}
    names = {place: item.entry.name for place, item in enumerate(_kept(inputs)) if place in stay} if stay else {}
    for place, item in enumerate(_change_kept(inputs)):
        item.facts = {name: value for name, value in item.facts.items() if name != SKETCHED}
        if place in found:
            kept, alike = found[place]
            scores = {"likeness": alike, "of": names[kept]}
            item.decisions.append(Decision("duplicates", "near_duplicate", scores, f"of {names[kept]}"))
        else:
            item.decisions.append(Decision("duplicates"))


class _Clips:
    """Clips to be held against one another, by their places: 32 bytes of each in memory, 328 on disk.

    A context manager.
    """

    def __init__(self, work: Workplace) -> None:
        self._work = work
        self._path = work.folder / "sketches.part"
        self._file = self._path.open("wb")
        self._contents, self._sides, self._seconds = bytearray(), array("q"), array("d")

    def __enter__(self) -> "_Clips":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        self._path.unlink()

    def add(self, item: Item) -> None:
        """The next clip."""
        self._file.write(base64.b64decode(item.facts[SKETCHED]))
        self._contents += bytes.fromhex(str(item.content)[: 2 * CONTENT])
        # Larger than what is stored is no better: an enlarged copy must not win.
        self._sides.append(min(item.facts["width"], item.facts["height"], self._work.settings.short_side))
        self._seconds.append(item.facts["seconds"])

    def sketches(self) -> Sketches:
        """Of all that were added."""
        self._file.flush()
        count = len(self._sides)
        records = np.memmap(self._path, SKETCH, "r", shape=count) if count else np.zeros(0, SKETCH)
        ranks = np.stack([-np.array(self._sides, np.int64), np.arange(count)], axis=1)
        return Sketches(records, np.array(self._seconds), ranks)

    def _content(self, place: int) -> str:
        return self._contents[place * CONTENT : (place + 1) * CONTENT].hex()

    def read_clip(self, place: int) -> Clip:
        """The decoded clip of one."""
        return self._work.read_clip(self._content(place))

    def read(self, place: int) -> Fingerprint:
        """The fingerprint of one."""
        thumbs, pts = read_thumbs(self._work.clip_path(self._content(place)))
        return fingerprint(thumbs, pts, self._seconds[place], (-self._sides[place], place))


def _kept(inputs: Inputs) -> Iterator[Item]:
    return (item for item in inputs if item.kept)


def _change_kept(inputs: Inputs) -> Iterator[Item]:
    """The kept inputs, of which what is done to them stays."""
    kept = ([item for item in some if item.kept] for some in inputs.change())
    return chain.from_iterable(kept)
