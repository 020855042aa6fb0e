"""Whose key came before, among any number: 16 bytes a key are held, and no text."""

import hashlib

import numpy as np

KEY_BYTES = 16
NO_KEY = bytes(KEY_BYTES)


class Keys:
    """Keys in the order they come. Two different ones of 10^9 are taken for equal with a chance of 10^-21."""

    def __init__(self) -> None:
        self._digests = bytearray()

    def __len__(self) -> int:
        return len(self._digests) // KEY_BYTES

    def add(self, key: str | None) -> None:
        """The next key; None for what has none."""
        self._digests += NO_KEY if key is None else digest(key, KEY_BYTES)

    def repeated(self) -> frozenset[int]:
        """The places of keys that are equal to an earlier one. Takes 27 bytes more of each key meanwhile."""
        keys = np.frombuffer(self._digests, "<u8").reshape(-1, 2)
        order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: of equal keys the first stays first
        ordered = keys[order]
        same = (ordered[1:] == ordered[:-1]).all(axis=1) & ordered[1:].any(axis=1)
        return frozenset(order[1:][same].tolist())


def digest(text: str, size: int) -> bytes:
    """BLAKE2b of a text, of so many bytes."""
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=size).digest()
