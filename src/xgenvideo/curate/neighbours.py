"""Which clips may show the same, among millions: bit signatures that lie side by side in sorted lists.

A signature holds the signs of random projections (SimHash, Charikar 2002): copies differ in few bits. Sorted by its
bits in another order each time, copies come to stand near one another in some list, however crowded or empty the space
around them is. Time grows with the number of clips, memory by about 200 bytes a clip.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

KINDS = 2  # of signatures a clip: what moves, and what the whole looks like
WORD, WORDS = 64, 5  # 320 bits of each kind
LISTS = 48  # of each kind
REACH = 8  # places looked at before and behind a clip in each list
KEPT = 16  # nearest clips held for each
# Share of differing bits, over both kinds, from which clips are no candidates: unrelated ones differ in half; of copies
# of 88 real and 160 generated clips (bench/duplicates.py) the farthest, a tenth cut off at two sides, in 0.35.
MOST_APART = 0.36
# Lengths of copies differ by less than this share and these seconds together: 1.1 times the speed, and rounding.
LENGTH_SHARE, LENGTH_SECONDS = 0.1, 0.25
CHUNK = 1 << 15  # clips looked at together

Signatures = NDArray[np.uint64]
FAR = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class Planes:
    """Random planes [D 320] for one kind of vector; the same seed, the same planes."""

    normals: NDArray[np.float32]

    @staticmethod
    def of(dim: int, seed: int) -> "Planes":
        """Planes for vectors [D]."""
        return Planes(np.random.default_rng(seed).normal(size=(dim, WORDS * WORD)).astype(np.float32))

    def sign(self, vectors: NDArray[np.float32]) -> Signatures:
        """On which side of each plane vectors [N D] lie, as bits [N 5]."""
        return np.packbits(vectors @ self.normals > 0, axis=1).view(np.uint64)


def find_neighbours(signatures: Signatures, seconds: NDArray[np.float64]) -> NDArray[np.int32]:
    """For each clip the nearest of those before it [N 16], nearest first, -1 where there are fewer.

    signatures [N 10], the kinds side by side; seconds [N], the clips' lengths. A list is sorted by one kind, clips are
    compared by both.
    """
    near = np.full((len(signatures), KEPT), -1, np.int32)
    apart = np.full((len(signatures), KEPT), FAR, np.uint16)
    rng = np.random.default_rng(20240102)
    for kind in range(KINDS):
        own = signatures[:, kind * WORDS : (kind + 1) * WORDS]
        for _ in range(LISTS):
            order = _sorted(own, rng)
            for start in range(0, len(order), CHUNK):
                clips, others, distances = _look(order, start, signatures, seconds)
                near[clips], apart[clips] = _nearest(
                    np.hstack([near[clips], others]), np.hstack([apart[clips], distances])
                )
    return near


def _sorted(own: Signatures, rng: np.random.Generator) -> NDArray[np.int32]:
    """The clips in the order of 64 of their bits, drawn anew; equal ones in their own order."""
    keys = np.zeros(len(own), np.uint64)
    for bit in rng.permutation(WORDS * WORD)[:WORD].tolist():
        keys = keys << np.uint64(1) | own[:, bit // WORD] >> np.uint64(bit % WORD) & np.uint64(1)
    return np.argsort(keys, kind="stable").astype(np.int32)


def _look(
    order: NDArray[np.int32], start: int, signatures: Signatures, seconds: NDArray[np.float64]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.uint16]]:
    """(clips [C], others [C 16], differing bits [C 16]) of the clips from `start` on with a candidate near."""
    first = max(0, start - REACH)
    clips = order[first : start + CHUNK + REACH]
    bits, lengths = np.ascontiguousarray(signatures[clips].T), seconds[clips]
    others = np.zeros((len(clips), 2 * REACH), np.int32)
    distances = np.full(others.shape, FAR, np.uint16)
    for step in range(1, min(REACH + 1, len(clips))):
        before, after = clips[:-step], clips[step:]
        differing = np.bitwise_count(bits[:, :-step] ^ bits[:, step:]).sum(axis=0, dtype=np.uint16)
        longer = np.maximum(lengths[:-step], lengths[step:])
        unlike = np.abs(lengths[:-step] - lengths[step:]) > LENGTH_SHARE * longer + LENGTH_SECONDS
        differing[unlike | (differing > MOST_APART * KINDS * WORDS * WORD)] = FAR
        others[:-step, REACH + step - 1], others[step:, REACH - step] = after, before
        distances[:-step, REACH + step - 1] = np.where(after < before, differing, FAR)
        distances[step:, REACH - step] = np.where(before < after, differing, FAR)
    found: NDArray[np.bool_] = np.any(distances < FAR, axis=1)
    found[: start - first] = found[start - first + CHUNK :] = False  # seen from the chunks beside
    return clips[found], others[found], distances[found]


def _nearest(others: NDArray[np.int32], distances: NDArray[np.uint16]) -> tuple[NDArray[np.int32], NDArray[np.uint16]]:
    """The 16 nearest of each row, a clip once."""
    none = np.iinfo(np.int64).max
    keys = np.where(distances == FAR, none, distances.astype(np.int64) << 32 | others.astype(np.int64))
    keys.sort(axis=1)
    keys[:, 1:][keys[:, 1:] == keys[:, :-1]] = none  # the same clip is as far each time it is met
    keys.sort(axis=1)
    keys = keys[:, :KEPT]
    found = keys < none
    return (
        np.where(found, keys & 0xFFFFFFFF, -1).astype(np.int32),
        np.where(found, keys >> 32, FAR).astype(np.uint16),
    )
