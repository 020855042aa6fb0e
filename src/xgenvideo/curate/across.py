"""Steps that hold inputs against one another: captions of one template, near duplicates, concepts.

Each goes through all inputs twice: it gathers few bytes of every one, then decides.
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from xgenvideo.curate.balance import count_concepts, judge_concepts, read_concepts
from xgenvideo.curate.captions import Crowds, judge_template
from xgenvideo.curate.clips import read_thumbs
from xgenvideo.curate.duplicates import Fingerprint, find_duplicates, fingerprint
from xgenvideo.curate.inputs import Inputs, Item
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
    found = find_duplicates(_Prints(_kept(inputs), work), work.settings)
    stay = {kept for kept, _ in found.values()}
    names = {place: item.entry.name for place, item in enumerate(_kept(inputs)) if place in stay} if stay else {}
    for place, item in enumerate(_change_kept(inputs)):
        if place in found:
            kept, alike = found[place]
            scores = {"likeness": alike, "of": names[kept]}
            item.decisions.append(Decision("duplicates", "near_duplicate", scores, f"of {names[kept]}"))
        else:
            item.decisions.append(Decision("duplicates"))


class _Prints(Mapping[int, Fingerprint]):
    """Fingerprints by the items' places, each made when it is asked for: a million take tens of gigabytes.

    Holds 28 bytes an item.
    """

    def __init__(self, items: Iterable[Item], work: Workplace) -> None:
        self._work = work
        self._contents, self._sides, self._seconds = bytearray(), array("i"), array("d")
        for item in items:
            self._contents += bytes.fromhex(str(item.content)[: 2 * CONTENT])
            # Larger than what is stored is no better: an enlarged copy must not win.
            self._sides.append(min(item.facts["width"], item.facts["height"], work.settings.short_side))
            self._seconds.append(item.facts["seconds"])

    def __len__(self) -> int:
        return len(self._sides)

    def __iter__(self) -> Iterator[int]:
        return self._work.tell("duplicates", range(len(self)), len(self))

    def __getitem__(self, place: int) -> Fingerprint:
        content = self._contents[place * CONTENT : (place + 1) * CONTENT].hex()
        thumbs, pts = read_thumbs(self._work.clip_path(content))
        return fingerprint(thumbs, pts, self._seconds[place], (-self._sides[place], place))


def _kept(inputs: Inputs) -> Iterator[Item]:
    return (item for item in inputs if item.kept)


def _change_kept(inputs: Inputs) -> Iterator[Item]:
    """The kept inputs, of which what is done to them stays."""
    kept = ([item for item in some if item.kept] for some in inputs.change())
    return chain.from_iterable(kept)
