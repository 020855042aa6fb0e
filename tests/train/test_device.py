"""A step on a device that is not the CPU: nothing is fetched from it or brought to it while work is queued there.

The device is torch's meta device, which refuses to tell a value and on which every tensor has a shape and a type alone.
"""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental import _config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xgenvideo.config import RunConfig, override
from xgenvideo.data.batch import Batch
from xgenvideo.parallel.engine import Engine, build_engine
from xgenvideo.parallel.layout import Layout
from xgenvideo.parallel.shards import pieces_of, total_norm
from xgenvideo.parallel.world import Groups, World
from xgenvideo.train.loop import CUBLAS_WORKSPACE, machine_settings
from xgenvideo.train.passes import contrast, count, replica_texts

META = torch.device("meta")


class Watched(TorchDispatchMode):
    """Writes down every operation, and those that have tensors of two devices."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.mixed: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run it."""
        made = func(*args, **(kwargs or {}))
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs, made)) if isinstance(leaf, Tensor)}
        self.names.append(str(func))
        if len(devices) > 1:
            self.mixed.append(str(func))
        return made


def on_meta(engine: Engine, world: World) -> Engine:
    """The engine with every tensor of its model on the meta device."""
    for module in engine.model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach().to(META), parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(META))
    named = [(name, p) for name, p in engine.model.named_parameters() if not name.startswith("vision.")]
    engine.pieces = pieces_of(named, world)
    return engine


def watched_tensor(make: Callable[..., Tensor], made: list[Any]) -> Callable[..., Tensor]:
    """torch.tensor; `made` gets the values of those that are copied to the meta device."""

    def tensor(values: Any, **options: Any) -> Tensor:
        if options.get("device") == META:
            made.append(values)
        return make(values, **options)

    return tensor


def batch_of(config: RunConfig) -> Batch:
    """A global batch without values."""
    pairs, frames, size = config.train.global_batch_pairs, 8, config.model.vision.image_size
    texts = torch.zeros((pairs, config.data.text_tokens), dtype=torch.int64)
    row = torch.zeros(pairs, dtype=torch.int64)
    pictures = torch.zeros((pairs, frames, 3, size, size), dtype=torch.uint8)
    shown = torch.ones((pairs, frames), dtype=torch.bool)
    columns = dict.fromkeys(("tokens", "targets", "documents", "positions"), texts)
    made = Batch(
        pictures, None, torch.zeros(pairs, frames), shown, **columns, caption_end=row, sees_video=texts.bool(),
        caption_group=row, keys=("",) * pairs,
    )  # fmt: skip
    return made.to(META)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_step_neither_waits_for_its_device_nor_copies_to_it(
    small_config: RunConfig, microbatches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Autocast does not know the meta device.
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    pairs = small_config.train.global_batch_pairs
    config = override(small_config, ["train.precision=fp32", f"layout.microbatch_pairs={pairs // microbatches}"])
    world = World(0, 1, META)
    made: list[Any] = []
    monkeypatch.setattr(torch, "tensor", watched_tensor(torch.tensor, made))
    engine = on_meta(build_engine(config, World(0, 1, torch.device("cpu"))), world)
    batch = batch_of(config)
    # How many frames are shown is the one question of a step before its end; the meta device says all.
    with _config.patch(meta_nonzero_assume_all_nonzero=True), Watched() as watched:
        video = engine.visual.look(batch, world.phases)
        counts, texts = count(batch, world, config), replica_texts(batch, world, config)
        embedding = engine.text.embed(texts, video.latents.detach())
        pulls = contrast(video.embedding, embedding, texts.caption_group, engine.model.logit_scale, config, world)
        engine.model.logit_scale.grad = pulls.by_scale
        loss, by_latents = engine.text.learn(pulls.by_text, counts.predicted)
        assert by_latents is not None
        engine.visual.learn(video, by_latents, pulls.by_video)
        norm = total_norm(engine.pieces, world)
    assert (loss.device, norm.device) == (META, META)
    assert watched.mixed == []
    # The pixels' mean and deviation, once a run.
    assert len(made) == 1
    asked = [at for at, name in enumerate(watched.names) if name.startswith("aten.nonzero")]
    work = [at for at, name in enumerate(watched.names) if name.startswith(("aten.convolution", "aten.mm"))]
    assert len(asked) == microbatches
    assert max(asked) < min(work), "asked after work was queued"
    # And the watch sees what it is for: a number made on the host.
    with Watched() as watched, contextlib.suppress(RuntimeError):
        torch.tensor(1.0).to(META)
    assert watched.mixed


@pytest.mark.parametrize("own", ["", ":16:8"])
def test_matrix_products_of_a_gpu_are_made_repeatable(
    small_config: RunConfig, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv(CUBLAS_WORKSPACE, raising=False)
    if own:
        monkeypatch.setenv(CUBLAS_WORKSPACE, own)
    with machine_settings(small_config):
        assert os.environ[CUBLAS_WORKSPACE] == (own or ":4096:8")
        assert torch.are_deterministic_algorithms_enabled()
    assert os.environ.get(CUBLAS_WORKSPACE, "") == own


@pytest.mark.parametrize(("device", "named"), [("cuda:3", [3]), ("cpu", None)])
def test_a_barrier_does_not_guess_its_device(device: str, named: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("torch.distributed.barrier", lambda device_ids=0: seen.append(device_ids))
    groups = Groups(**dict.fromkeys((field.name for field in fields(Groups)), cast(Any, None)))
    World(rank=3, size=8, device=torch.device(device), layout=Layout(1, 8, 1), groups=groups).wait()
    assert seen == [named]
