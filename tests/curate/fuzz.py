"""Seeded damage to small videos, and playlists that name a file outside, given to the decoding processes.

Run: python -m tests.curate.fuzz 10000 --seed 0. Linux tells (inotify) whether the file outside was opened.
"""

import argparse
import ctypes
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.curate.conftest import write_clip_file
from xgenvideo.curate.workers import DecodePool

ATOMS = (b"moov", b"trak", b"stsz", b"stco", b"stts", b"ctts", b"elst", b"tkhd", b"mdhd", b"avcC", b"mdat", b"free")
SEEDS = 4
LURES = 0.1  # of the files
IN_OPEN = 0x20


def damage(content: bytes, rng: random.Random) -> bytes:
    """One of: bits flipped, a cut, a piece removed, doubled or zeroed, a size or a name of an atom changed."""
    data = bytearray(content)
    at, size = rng.randrange(len(data)), rng.randrange(1, 200)
    kind = rng.randrange(8)
    if kind == 0:
        for _ in range(rng.randrange(1, 40)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        del data[at : at + size]
    elif kind == 3:
        data[at:at] = data[at : at + size] * rng.randrange(1, 20)
    elif kind == 4:
        data[at : at + size] = bytes(len(data[at : at + size]))
    elif kind == 5:
        data[at : at + size] = rng.randbytes(len(data[at : at + size]))
    else:
        _damage_atom(data, rng, kind)
    return bytes(data)


def _damage_atom(data: bytearray, rng: random.Random, kind: int) -> None:
    place = data.find(rng.choice(ATOMS))
    if place < 4:
        return
    if kind == 6:
        extreme = rng.choice((0, 1, 7, 2**31 - 1, 2**31, 2**32 - 1, rng.randrange(2**32)))
        data[place - 4 : place] = extreme.to_bytes(4, "big")
    else:
        words = place + 4 + 4 * rng.randrange(1, 12)
        data[words : words + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", rng.randbytes(4)))


def lure(outside: Path, rng: random.Random) -> bytes:
    """A text that some demuxer follows to another file."""
    name = rng.choice((str(outside), f"file:{outside}", f"file://{outside}", f"concat:{outside}|{outside}", "../" * 9))
    texts = (
        f"ffconcat version 1.0\nfile '{name}'\n", f"#EXTM3U\n#EXTINF:4,\n{name}\n#EXT-X-ENDLIST\n",
        f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{name}\n", f"RTSPtext\nrtsp://127.0.0.1:9{name}\n",
        f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns={name}\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
        f'<?xml version="1.0"?><MPD type="static"><Period><AdaptationSet><Representation id="0">'
        f"<BaseURL>{name}</BaseURL></Representation></AdaptationSet></Period></MPD>",
        f"WEBVTT\n\n00:00.000 --> 00:01.000\n{name}\n", f";FFMETADATA1\ntitle={name}\n",
    )  # fmt: skip
    return rng.choice((b"", b"\xef\xbb\xbf", b"\0")) + rng.choice(texts).encode() * rng.choice((1, 1, 50))


class OpenWatch:
    """The kernel's own record of what is opened in a folder, by whatever process."""

    def __init__(self, folder: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = self._libc.inotify_init1(os.O_NONBLOCK)
        if self.descriptor < 0 or self._libc.inotify_add_watch(self.descriptor, bytes(folder), IN_OPEN) < 0:
            pytest.skip("this system has no inotify")

    def opened(self) -> bool:
        """Whether anything was opened since the last call."""
        try:
            return len(os.read(self.descriptor, 65536)) > 0
        except BlockingIOError:
            return False


def make_jobs(folder: Path, count: int, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """`count` damaged or luring files, each with its job; the same seed and folder give the same bytes."""
    whole = []
    for number in range(SEEDS):
        write_clip_file(folder / f"whole-{number}.mp4", frames=12 + 8 * number, seed=number)
        whole.append((folder / f"whole-{number}.mp4").read_bytes())
    sampling = {"fps": 2.0, "max_frames": 64, "short_side": 256, "jpeg_quality": 90}
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        path = folder / f"{number}.mp4"
        content = (
            lure(folder / "outside" / "secret.mp4", rng) if rng.random() < LURES else damage(rng.choice(whole), rng)
        )
        path.write_bytes(content)
        yield str(number), {"path": str(path), "out": str(folder / f"{number}.npz"), **sampling}


def fuzz(folder: Path, count: int, seed: int, processes: int = 1) -> tuple[Counter[str], int]:
    """Decode `count` damaged files; returns how many ended how, and how often a decoder had to be started again."""
    outcomes: Counter[str] = Counter()
    answered: set[str] = set()
    (folder / "outside").mkdir()
    write_clip_file(folder / "outside" / "secret.mp4")
    watch = OpenWatch(folder / "outside")
    (folder / "outside" / "secret.mp4").read_bytes()
    assert watch.opened(), "the watch must see an open"
    with DecodePool(processes, seconds=20.0, memory_mb=2048) as pool:
        for name, answer in pool.run(make_jobs(folder, count, seed)):
            assert name not in answered, f"file {name} ended twice"
            answered.add(name)
            outcomes[answer.get("reason", "decoded")] += 1
    assert answered == {str(number) for number in range(count)}, f"{len(answered)} of {count} files ended"
    assert not watch.opened(), "the file outside was opened"
    return outcomes, pool.restarts


def main() -> None:
    """Print how the files ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        outcomes, restarts = fuzz(Path(folder), parsed.count, parsed.seed)
    seconds = round(time.monotonic() - begun, 1)
    print(json.dumps({"files": parsed.count, "outcomes": dict(outcomes), "restarts": restarts, "seconds": seconds}))


if __name__ == "__main__":
    main()
