"""Which container a video file is, from its first bytes, and whether all of it is there."""

from pathlib import Path
from typing import BinaryIO

from xgenvideo.errors import MediaError

_MOV_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp"})
_ASF_GUID = bytes.fromhex("3026b2758e66cf11")


def sniff_container(path: Path) -> str:
    """Name of the demuxer that the first bytes call for. Raises MediaError (empty_file, not_a_video, ...)."""
    try:
        if not path.is_file():
            raise MediaError("missing_file", path, "no such file")
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise MediaError("missing_file", path, error.strerror or str(error)) from error
    if not head:
        raise MediaError("empty_file", path)
    name = _container_name(head)
    if name is None:
        text = not any(byte < 9 for byte in head)
        raise MediaError("not_a_video" if text else "unknown_container", path, "its first bytes are of no known video")
    return name


def _container_name(head: bytes) -> str | None:
    if head[4:8] in _MOV_BOXES:
        return "mov"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[0] == 0x47 and len(head) > 376 and head[188] == 0x47 and head[376] == 0x47:
        return "mpegts"
    prefixes = {
        b"\x1aE\xdf\xa3": "matroska",
        b"FLV\x01": "flv",
        b"OggS": "ogg",
        b"\x00\x00\x01\xba": "mpeg",
        b"\x00\x00\x01\xb3": "mpegvideo",
        b"GIF8": "gif",
        _ASF_GUID: "asf",
    }
    return next((name for prefix, name in prefixes.items() if head.startswith(prefix)), None)


def check_complete(file: BinaryIO, container: str, path: Path) -> None:
    """Raise `truncated` when the outermost element is longer than the file: decoders stop early and say nothing."""
    size = file.seek(0, 2)
    if container == "mov":
        missing = _mov_missing(file, size)
    elif container == "avi":
        file.seek(4)
        missing = "end" if int.from_bytes(file.read(4), "little") + 8 > size else ""
    elif container == "matroska":
        missing = _matroska_missing(file, size)
    else:
        missing = ""
    file.seek(0)
    if missing:
        raise MediaError("truncated", path, f"{size} bytes, the {missing} is missing")


def _mov_missing(file: BinaryIO, size: int) -> str:
    offset = 0
    names: set[bytes] = set()
    while offset + 8 <= size and len(names) < 10_000:
        file.seek(offset)
        header = file.read(16)
        length, name = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        names.add(name)
        if length == 0:
            break
        if length < 8 or offset + length > size:
            # Trailing junk after a complete film is common; a film that lacks its end is not usable.
            return "" if {b"moov", b"mdat"} <= names - {name} else f"end of {name!r}"
        offset += length
    return "" if b"moov" in names else "moov box"


def _matroska_missing(file: BinaryIO, size: int) -> str:
    def number(offset: int, keep_marker: bool) -> tuple[int, int]:
        file.seek(offset)
        head = file.read(8)
        if not head or head[0] == 0:
            return 0, 0
        length = 9 - head[0].bit_length()
        value = int.from_bytes(head[:length], "big")
        if not keep_marker:
            value &= (1 << 7 * length) - 1
        return value, length

    header, width = number(4, keep_marker=False)
    start = 4 + width + header
    identity, id_width = number(start, keep_marker=True)
    length, length_width = number(start + id_width, keep_marker=False)
    unknown = (1 << 7 * length_width) - 1  # a live recording: its length was never written
    if identity != 0x18538067 or length_width == 0:
        return "segment"
    return "end of the segment" if length != unknown and start + id_width + length_width + length > size else ""
