"""Colour words against colours seen: evidence that needs no model. A caption whose colours are absent is another's."""

import re
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# Hue from and to in degrees, saturation from and to, least value (0-1). Neighbours overlap: people do not agree where
# orange ends. A pale red is called pink. Black, white and grey are left out: almost every picture has them.
_RANGES: dict[str, tuple[tuple[float, float, float, float, float], ...]] = {
    "red": ((340, 20, 0.40, 1.0, 0.18),),
    "orange": ((8, 46, 0.40, 1.0, 0.25),),
    "yellow": ((40, 72, 0.30, 1.0, 0.30),),
    "green": ((60, 170, 0.15, 1.0, 0.10),),
    "cyan": ((160, 200, 0.20, 1.0, 0.25),),
    "blue": ((188, 262, 0.15, 1.0, 0.10),),
    "purple": ((250, 318, 0.15, 1.0, 0.12),),
    "pink": ((300, 340, 0.12, 1.0, 0.45), (340, 25, 0.12, 0.55, 0.55)),
    "brown": ((5, 50, 0.20, 1.0, 0.08),),
}
_WORDS = {
    "red": "red crimson scarlet maroon",
    "orange": "orange",
    "yellow": "yellow golden gold",
    "green": "green lush",
    "cyan": "cyan turquoise teal",
    "blue": "blue navy",
    "purple": "purple violet lavender",
    "pink": "pink magenta",
    "brown": "brown",
}
_COLOUR_OF = {word: colour for colour, words in _WORDS.items() for word in words.split()}
_NOT_SEEN = re.compile(r"\b(orange juice|red sea|red wine|green tea)\b")  # names, not what is to be seen
MIN_CHROMA = 30  # of 255, largest channel less smallest: over codec noise and tinted greys


def named_colours(caption: str) -> set[str]:
    """Colours that a caption names as one of nine basic terms."""
    text = _NOT_SEEN.sub(" ", caption.lower())
    return {_COLOUR_OF[word] for word in re.findall(r"[a-z]+", text) if word in _COLOUR_OF}


def colour_shares(frames: NDArray[np.uint8]) -> dict[str, float]:
    """For each colour, the largest share of pixels of any of the frames [F H W 3] RGB that have it."""
    shares = dict.fromkeys(_RANGES, 0.0)
    for frame in frames:
        height, width = frame.shape[:2]
        scale = 128 / min(height, width)
        small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else frame
        hsv = cv2.cvtColor(small, cv2.COLOR_RGB2HSV_FULL).astype(np.float32)
        hue, saturation, value = hsv[..., 0] * (360 / 256), hsv[..., 1] / 255, hsv[..., 2] / 255
        vivid = saturation * value >= MIN_CHROMA / 255
        for name, ranges in _RANGES.items():
            seen = np.zeros(hue.shape, bool)
            for low, high, faint, full, least_value in ranges:
                inside = (hue >= low) & (hue <= high) if low < high else (hue >= low) | (hue <= high)
                seen |= inside & (saturation >= faint) & (saturation <= full) & (value >= least_value) & vivid
            # Blended edges look like other colours (a red thing's like pink); opening leaves what is 3 pixels wide.
            solid = cv2.morphologyEx(seen.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
            shares[name] = max(shares[name], cv2.countNonZero(solid) / solid.size)
    return {name: round(float(share), 5) for name, share in shares.items()}


def grounding(caption: str, shares: dict[str, float], min_share: float) -> dict[str, Any]:
    """Named colours, those of them to be seen, and their ratio (None when the caption names no colour)."""
    named = named_colours(caption)
    seen = {name for name in named if shares[name] >= min_share}
    return {"named": sorted(named), "seen": sorted(seen), "share": len(seen) / len(named) if named else None}
