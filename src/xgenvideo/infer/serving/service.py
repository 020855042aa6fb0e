"""What the server has: the model and its turn, the decoders, the engine, uploads, the folder. It knows no HTTP."""

import asyncio
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from xgenvideo.data.decoders import Bounds, Decoders, Stopped
from xgenvideo.errors import MediaError
from xgenvideo.infer.cite import Cited, cite
from xgenvideo.infer.embed import Vectors, embed_text
from xgenvideo.infer.generate import Draw
from xgenvideo.infer.release import Release
from xgenvideo.infer.serving.engine import Ended, Engine, Job, Word
from xgenvideo.infer.serving.fetch import fetch
from xgenvideo.infer.serving.folder import Folder
from xgenvideo.infer.serving.limits import Limits
from xgenvideo.infer.serving.metrics import Metrics
from xgenvideo.infer.serving.refusal import NOT_HERE, TRY_LATER, Refusal
from xgenvideo.infer.serving.sources import Places, Remote, Sent, Source, Stored, Uploaded
from xgenvideo.infer.serving.watch import Library, Seen, watch

COME_BACK_SECONDS = 2.0


@dataclass(frozen=True, repr=False)
class Received:
    """An upload on its way in."""

    file: BinaryIO
    name: str


class Service:
    """One release at work. Its coroutines run in one event loop; decoding, the model and files in threads."""

    def __init__(self, release: Release, limits: Limits, places: Places, index: Path | None) -> None:
        self.release, self.limits, self.places = release, limits, places
        self.metrics = Metrics()
        self.library = Library(limits.files, limits.files_mb)
        # The model uses all cores as it is: one use at a time, in short turns.
        self.turn = threading.Lock()
        self.engine = Engine(release, limits.batch, self.turn, self.metrics.batch.observe)
        bounds = Bounds(limits.max_seconds, limits.max_pixels, limits.decoder_seconds, limits.decoder_mb)
        self._decoders = Decoders(limits.decoders, bounds)
        self._watchers = ThreadPoolExecutor(limits.decoders, "xgv-watch")
        self.folder = None if index is None else Folder(release, index, bounds, self.turn)
        self._inside = 0
        self.metrics.in_house.set_function(lambda: self._inside)
        self.metrics.waiting.set_function(lambda: self.engine.waiting)

    def close(self) -> None:
        """End threads and children."""
        self.engine.close()
        self._watchers.shutdown(cancel_futures=True)
        self._decoders.close()
        if self.folder is not None:
            self.folder.close()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place in the house. Raises Refusal 503 where none is free."""
        if self._inside >= self.limits.queue:
            message = f"{self.limits.queue} requests are being answered or wait (serve.queue); try again"
            raise Refusal(503, message, "queue_full", TRY_LATER, retry_seconds=COME_BACK_SECONDS)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    async def see(self, source: Source | Received, stop: threading.Event, pictures: bool = False) -> Seen:
        """Watch a video, or find it among those watched. Raises MediaError, ConfigError, Refusal, Stopped."""
        if isinstance(source, Uploaded):
            file = self.library.find(source.id)
            if file is None:
                message = f"no file {source.id!r} here; it may have made room for later ones: upload it again"
                raise Refusal(404, message, "file_not_found", NOT_HERE, "file_id")
            return file.seen
        work = partial(self._watch, source, stop, pictures)
        try:
            seen = await asyncio.get_running_loop().run_in_executor(self._watchers, work)
        except MediaError as error:
            self.metrics.decode_failures.labels(error.reason).inc()
            raise
        self.metrics.video_seconds.inc(seen.seconds)
        return seen

    def _watch(self, source: Sent | Stored | Remote | Received, stop: threading.Event, pictures: bool) -> Seen:
        """In a thread: put the video where a child can read it, and read it."""
        if stop.is_set():
            raise Stopped
        data, side = self.release.config.data, int(self.release.processor["short_side"])
        with tempfile.TemporaryDirectory(prefix="xgv-") as folder:
            path, name = self._put(source, Path(folder) / "video", stop)
            windows = self._decoders.windows(path, data.fps, data.frames, side, stop)
            try:
                return watch(self.release, windows, self.turn, pictures)
            except MediaError as error:
                # Where the file lies here is nobody's business.
                raise MediaError(error.reason, name, error.detail.replace(str(path), name)) from error

    def _put(self, source: Sent | Stored | Remote | Received, path: Path, stop: threading.Event) -> tuple[Path, str]:
        """The file to read, and what to call it."""
        if isinstance(source, Stored):
            return source.path, source.name
        if isinstance(source, Remote):
            fetch(source.url, path, self.limits.max_mb, stop)
            return path, source.url
        if isinstance(source, Received):
            with path.open("xb") as file:
                shutil.copyfileobj(source.file, file)
            return path, source.name
        return source.path, "video"

    async def write(
        self, seen: Seen, ids: list[int], max_tokens: int, draw: Draw, stop: threading.Event
    ) -> AsyncIterator[str | Ended]:
        """An answer in pieces as they are written, then its end. Raises Stopped."""
        loop = asyncio.get_running_loop()
        said: asyncio.Queue[Word] = asyncio.Queue()

        def say(word: Word) -> None:
            with suppress(RuntimeError):  # the loop has ended: nobody listens
                loop.call_soon_threadsafe(said.put_nowait, word)

        self.engine.submit(Job(ids, seen.together, max_tokens, draw, say, stop))
        self.metrics.tokens.labels("prompt").inc(len(ids))
        begun = False
        while True:
            word = await said.get()
            if isinstance(word, Exception):
                raise word
            if isinstance(word, Ended):
                self.metrics.tokens.labels("completion").inc(word.tokens)
                yield word
                return
            # A document has a space between prompt and answer.
            word = word if begun else word.lstrip()
            if word:
                begun = True
                yield word

    async def cite(self, seen: Seen, prompt: str, text: str) -> tuple[Cited, ...]:
        """The spans that speak for an answer."""

        def work() -> tuple[Cited, ...]:
            with self.turn:
                return cite(self.release, seen.pieces, seen.piece_spans, prompt, text)

        return await asyncio.to_thread(work)

    async def embed_text(self, text: str) -> Vectors:
        """Unit vector [E] of a text."""

        def work() -> Vectors:
            with self.turn:
                return embed_text(self.release, text)

        return await asyncio.to_thread(work)
