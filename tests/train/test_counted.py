"""What a step does, counted: kernels, reads by the host, frames through the encoder, and memory for the logits."""

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xgenvideo import objectives
from xgenvideo.config import RunConfig, override
from xgenvideo.data.batch import Batch
from xgenvideo.data.dataset import Dataset
from xgenvideo.data.loader import Loader
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.parallel.engine import build_engine
from xgenvideo.parallel.phases import Phases
from xgenvideo.parallel.world import World
from xgenvideo.train.optimizer import build_optimizer
from xgenvideo.train.step import training_step


@dataclasses.dataclass(frozen=True)
class Call:
    """An operation, the phase of the step it was called in, and what it made: shapes, types, where it lies."""

    name: str
    phase: str
    made: tuple[tuple[torch.Size, torch.dtype, int], ...]
    distributed: bool


class Calls(TorchDispatchMode):
    """Writes down every operation of a step."""

    def __init__(self, phases: Phases) -> None:
        super().__init__()
        self.phases, self.seen = phases, list[Call]()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run it."""
        made = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        told = tuple((one.shape, one.dtype, one.untyped_storage().data_ptr()) for one in tensors)
        self.seen.append(Call(func.__name__, self.phases.name, told, DTensor in types))
        return made


@pytest.fixture
def batch(run_config: RunConfig, twins_dataset: Dataset, twins_tokenizer: Tokenizer) -> Batch:
    """Four pairs."""
    loader = Loader(twins_dataset, twins_tokenizer, run_config)
    batch = loader.next_batch()
    loader.close()
    return batch


def calls_of_a_step(config: RunConfig, batch: Batch) -> tuple[list[Call], int]:
    """The operations of the second step, and how many frames went through the encoder in it."""
    world = World(0, 1, torch.device("cpu"))
    engine = build_engine(config, world)
    optimizer = build_optimizer(engine.pieces, config.optimizer)
    loader = cast(Loader, SimpleNamespace(next_batch=lambda: batch))
    training_step(config, engine, loader, optimizer, world, 0)
    frames: list[int] = []
    engine.visual.vision.register_forward_hook(lambda module, given, made: frames.append(len(given[0])))
    with Calls(world.phases) as calls:
        training_step(config, engine, loader, optimizer, world, 1)
    return calls.seen, sum(frames)


def logit_tensors(calls: list[Call], numbers: int, vocab: int) -> list[tuple[torch.dtype, int]]:
    """Types and places of all tensors that hold every logit of a microbatch."""
    made = [one for call in calls for one in call.made]
    return [(dtype, place) for shape, dtype, place in made if shape.numel() == numbers and shape[-1] == vocab]


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_all_logits_of_a_microbatch_exist_once_and_never_in_a_wider_type(
    run_config: RunConfig, batch: Batch, precision: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectives, "PIECE_NUMBERS", 1)
    config = override(run_config, [f"train.precision={precision}"])
    vocab = config.model.decoder.vocab
    calls, _ = calls_of_a_step(config, batch)
    found = logit_tensors(calls, batch.tokens.numel() * vocab, vocab)
    assert {dtype for dtype, _ in found} == {dtype}
    # The gradient that the head's backward reads is in the memory that its forward wrote.
    assert len({place for _, place in found}) == 1


@pytest.mark.parametrize("pairs", [4, 1])
def test_the_optimizer_is_one_kernel_a_group_and_the_host_reads_at_the_end_alone(
    run_config: RunConfig, batch: Batch, pairs: int
) -> None:
    calls, _ = calls_of_a_step(override(run_config, [f"layout.microbatch_pairs={pairs}"]), batch)
    update = [call for call in calls if call.phase not in ("load", "encode", "resample", "join", "contrast", "learn")]
    names = [call.name for call in update]
    assert names.count("_fused_adamw_.default") == 3
    # No other kernel is called once for each of the parameters: what remains is the gradients' common norm and its cut.
    assert len(names) < 60
    # One question, whether all is finite, then the figures of the log.
    reads = [place for place, name in enumerate(names) if name == "_local_scalar_dense.default"]
    assert len(reads) == 8
    assert reads[0] < names.index("_fused_adamw_.default") < reads[1]
    assert not any(call.distributed for call in calls)


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("pairs", [4, 1])
def test_a_frame_goes_through_the_frozen_encoder_once(
    run_config: RunConfig, batch: Batch, pairs: int, recompute: str
) -> None:
    changes = [f"layout.microbatch_pairs={pairs}", f"train.recompute={recompute}"]
    _, frames = calls_of_a_step(override(run_config, changes), batch)
    assert frames == int(batch.frame_mask.sum())


def test_cached_features_are_read_and_not_made(run_config: RunConfig, batch: Batch) -> None:
    vision = run_config.model.vision
    features = torch.randn(*batch.frame_mask.shape, vision.patches, vision.width)
    config = override(run_config, ["data.cache_features=true"])
    _, frames = calls_of_a_step(config, dataclasses.replace(batch, frames=None, features=features))
    assert frames == 0
