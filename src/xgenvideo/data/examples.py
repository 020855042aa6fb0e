"""One sample as the model takes it: its frames, or the features of a cache."""

import torch
from torch import Tensor

from xgenvideo.config import RunConfig
from xgenvideo.data.batch import Example
from xgenvideo.data.dataset import Dataset, Row
from xgenvideo.data.features import FeatureCache
from xgenvideo.data.frames import decode_frames
from xgenvideo.data.text import PackedText


def read_example(
    dataset: Dataset,
    row: Row,
    text: PackedText,
    config: RunConfig,
    cache: FeatureCache | None = None,
    first: int = 0,
    room: Tensor | None = None,
) -> Example:
    """One sample: at most `config.data.frames` frames from frame `first` on, as features where there is a cache.

    They are put into `room` [R 3 S S] or [R P W] where that is given and has enough rows. Raises MediaError for frames
    that are no pictures, DataError for a corrupt shard.
    """
    last = min(row.frames, first + config.data.frames)
    pts = torch.tensor(row.pts[first:last], dtype=torch.float32)
    if cache is not None:
        return Example(row.key, text, pts, features=cache.read(row.key, first, last - first, room))
    frames = decode_frames(dataset.read_row(row), config.model.vision.image_size, range(first, last), room)
    return Example(row.key, text, pts, frames=frames)
