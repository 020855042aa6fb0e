"""JPEG frames of a sample to the square pictures that the vision encoder takes."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgenvideo.errors import MediaError
from xgenvideo.records import Sample

# Our frames have no orientation tag; one that came in anyway must not turn a frame against its neighbours.
READ_MODE = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION


def decode_frames(sample: Sample, image_size: int, indices: Sequence[int] | None = None) -> Tensor:
    """Frames (all, or those of `indices`) -> [F 3 S S] uint8 RGB with S = `image_size`.

    Raises MediaError `undecodable_frame` for a frame that is no picture.
    """
    chosen = range(len(sample.jpegs)) if indices is None else indices
    frames = np.empty((len(chosen), 3, image_size, image_size), dtype=np.uint8)
    for row, index in enumerate(chosen):
        jpeg = np.frombuffer(sample.jpegs[index], dtype=np.uint8)
        picture = cv2.imdecode(jpeg, READ_MODE) if len(jpeg) else None
        if picture is None:
            raise MediaError("undecodable_frame", sample.key, f"frame {index} is not a picture")
        square = fit_square(picture.astype(np.uint8, copy=False), image_size)
        frames[row] = square[:, :, ::-1].transpose(2, 0, 1)
    return torch.from_numpy(frames)


def fit_square(picture: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    """A picture [H W 3] with its short side resized to `image_size`, then the centre [S S 3].

    Shrinking averages areas, which is the antialias; growing is bilinear.
    """
    height, width = picture.shape[:2]
    short = min(height, width)
    if short != image_size:
        size = (max(image_size, round(width * image_size / short)), max(image_size, round(height * image_size / short)))
        mode = cv2.INTER_AREA if short > image_size else cv2.INTER_LINEAR
        picture = cv2.resize(picture, size, interpolation=mode).astype(np.uint8, copy=False)
    top, left = (picture.shape[0] - image_size) // 2, (picture.shape[1] - image_size) // 2
    return picture[top : top + image_size, left : left + image_size]
