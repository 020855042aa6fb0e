"""A folder of videos that the server's clients may search: its index is kept up to date beside answering."""

import hashlib
import hmac
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from xgenvideo.data.decoders import Bounds, Decoders, Stopped
from xgenvideo.errors import XGenVideoError
from xgenvideo.infer import search
from xgenvideo.infer.embed import Vectors
from xgenvideo.infer.release import Release
from xgenvideo.infer.search import Hit, Index, Timed
from xgenvideo.infer.serving.watch import in_turn

LOOK_AGAIN_SECONDS = 30.0


class Folder:
    """An index in memory and on disk. A thread looks for new, changed and removed videos now and then."""

    def __init__(self, release: Release, folder: Path, bounds: Bounds, turn: threading.Lock) -> None:
        self.folder = folder.resolve()
        self._release, self._turn, self._stop = release, turn, threading.Event()
        self._decoders = Decoders(1, bounds)
        self._index: Index | None = None
        # What is searched for may be watched: files carry a key that no other server's and no guess has.
        self._secret = secrets.token_bytes(32)
        self._told: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="xgv-index", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; what it has read is in the index on disk."""
        self._stop.set()
        self._thread.join()
        self._decoders.close()

    @property
    def videos(self) -> int | None:
        """How many videos can be found; None until the folder was looked through."""
        return None if self._index is None else len(self._index.names)

    def find(self, vector: Vectors, top: int) -> list[Hit]:
        """The nearest windows to a unit vector [E], paths relative to the folder; none while there is no index."""
        return [] if self._index is None else search.rank(self._index, vector, top)

    def key(self, name: str) -> str:
        """What an address of a video must carry."""
        return hmac.new(self._secret, name.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:32]

    def file(self, name: str, key: str) -> Path | None:
        """The file of that name, if it is in the index, still in the folder, and its key is right."""
        if self._index is None or name not in self._index.names or not hmac.compare_digest(key, self.key(name)):
            return None
        path = (self.folder / name).resolve()
        return path if path.is_relative_to(self.folder) and path.is_file() else None

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._index = search.refresh(
                    self._release, self.folder, None, self._tell, self._embed, self._index, self._show
                )
            except Stopped:
                return
            except XGenVideoError as error:
                self._tell(str(error))
            self._stop.wait(LOOK_AGAIN_SECONDS)

    def _show(self, index: Index) -> None:
        """What is read so far can be found already."""
        self._index = index

    def _embed(self, path: Path) -> Iterator[Timed]:
        data = self._release.config.data
        side = int(self._release.processor["short_side"])
        taken = self._decoders.windows(path, data.fps, data.frames, side, self._stop)
        windows = (self._release.window(number, one) for number, one in enumerate(taken))
        return search.embed_spans(self._release, in_turn(windows, self._turn))

    def _tell(self, line: str) -> None:
        """Each line once, not at every look."""
        if line not in self._told:
            self._told.add(line)
            print(f"{time.strftime('%H:%M:%S')} index: {line}", file=sys.stderr, flush=True)
