"""The frozen encoder computes in the run's precision, on one rank and on many, and keeps its name."""

import pytest
import torch
from torch import Tensor, nn

from xgenvideo.config import RunConfig, override
from xgenvideo.data.batch import Batch
from xgenvideo.models.vision import build_vision, encoder_hash, narrow_products
from xgenvideo.parallel.dry_run import pretended
from xgenvideo.parallel.engine import Engine, build_engine
from xgenvideo.parallel.visual import shown_frames
from xgenvideo.parallel.world import World


def two_clips(config: RunConfig) -> Batch:
    """Two clips, the second padded."""
    size, tokens = config.model.vision.image_size, torch.zeros((2, 4), dtype=torch.int64)
    frames = torch.randint(256, (2, 3, 3, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    shown = torch.tensor([[True, True, True], [True, False, False]])
    texts = dict.fromkeys(("tokens", "targets", "documents", "positions"), tokens)
    row = torch.zeros(2, dtype=torch.int64)
    return Batch(
        frames, None, torch.zeros(2, 3), shown, **texts, caption_end=row, sees_video=tokens.bool(), caption_group=row,
        keys=("one", "two"),
    )  # fmt: skip


def products(engine: Engine, batch: Batch) -> tuple[Tensor, set[torch.dtype]]:
    """The features of a batch, and the types that the encoder's matrix products came out in."""
    found: set[torch.dtype] = set()
    for module in engine.model.vision.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda module, inputs, result: found.add(result.dtype))
    return engine.visual.encode(batch, shown_frames(batch)), found


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_encoder_of_many_ranks_computes_in_the_precision_of_one(small_config: RunConfig, precision: str) -> None:
    alone = override(small_config, [f"train.precision={precision}"])
    config = override(alone, ["layout.data=2", "layout.microbatch_pairs=1"])
    batch = two_clips(config)
    expected, types = products(build_engine(alone, World(0, 1, torch.device("cpu"))), batch)
    assert types == {torch.bfloat16 if precision == "bf16" else torch.float32}
    with pretended(config, 0, 2) as world:
        features, of_many = products(build_engine(config, world), batch)
    assert of_many == types
    assert torch.equal(features.float(), expected.to(features.dtype).float())
    assert not features[1, 1:].any()
    assert features[1, 0].any()


def test_narrow_weights_give_the_features_of_autocast_and_half_the_memory(small_config: RunConfig) -> None:
    vision = build_vision(small_config.model.vision)
    frames = two_clips(small_config).present_frames()[0]
    with torch.autocast("cpu", torch.bfloat16):
        expected = vision(frames)
        before = sum(parameter.nbytes for parameter in vision.parameters())
        narrow_products(vision)
        assert torch.equal(vision(frames), expected)
    assert sum(parameter.nbytes for parameter in vision.parameters()) < 0.7 * before


def test_the_name_of_the_encoder_does_not_depend_on_the_precision(small_config: RunConfig) -> None:
    name = encoder_hash(build_vision(small_config.model.vision))
    for precision in ("bf16", "fp32", "fp64"):
        config = override(small_config, [f"train.precision={precision}"])
        assert build_engine(config, World(0, 1, torch.device("cpu"))).encoder_hash == name
