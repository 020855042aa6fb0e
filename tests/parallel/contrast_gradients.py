"""Gradients of the contrastive loss alone, by real ranks of several layouts; run by test_contrast.py.

Every layout takes one training step on a batch without next-token targets, so that the gradients it hands to clipping
are the contrastive loss's. They are compared with one plain backward over the whole batch in one process.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from parity import LAYOUTS, MadeUp, open_gates, small

from xgenvideo.config import RunConfig
from xgenvideo.data.loader import Loader
from xgenvideo.objectives import IGNORED, contrastive_loss, sigmoid_contrastive_loss
from xgenvideo.parallel.engine import build_engine
from xgenvideo.parallel.shards import Piece
from xgenvideo.parallel.visual import shown_frames
from xgenvideo.parallel.world import World, lay_out
from xgenvideo.train import step as page
from xgenvideo.train.optimizer import build_optimizer

Gradients = dict[str, Tensor]


class WithoutTargets(MadeUp):
    """Made-up pairs of which no token is predicted: only the contrastive loss has a gradient."""

    def _pair(self, place: int) -> dict[str, Tensor]:
        pair = super()._pair(place)
        return pair | {"targets": torch.full_like(pair["targets"], IGNORED)}


def config_of(layout: str, loss: str, scope: str) -> RunConfig:
    """The small model in float64, a weight that is not 1, two of twelve captions alike."""
    changes = ["train.global_batch_pairs=12", *(f"layout.{change}" for change in LAYOUTS[layout])]
    changes += [f"objective.contrastive_scope={scope}", f"objective.contrastive={loss}"]
    return small(["train.precision=fp64", "objective.contrastive_weight=0.7", *changes])


def plain_gradients(config: RunConfig) -> Gradients:
    """One process, one backward; scope "microbatch" is the mean over microbatches of their own losses."""
    pairs, microbatch = config.train.global_batch_pairs, config.layout.microbatch_pairs
    engine = build_engine(small(["train.precision=fp64"]), World(0, 1, torch.device("cpu")))
    open_gates(engine)
    model, batch = engine.model, WithoutTargets(config, range(pairs)).next_batch()
    latents = model.latents(engine.visual.encode(batch, shown_frames(batch)), batch.pts, batch.frame_mask)
    video = model.video_embedding(latents)
    text = model.text_embedding(batch.tokens, batch.positions, batch.documents, batch.caption_end)
    loss = sigmoid_contrastive_loss if config.objective.contrastive == "sigmoid" else contrastive_loss
    whole = config.objective.contrastive_scope == "global"
    pools = [slice(0, pairs)] if whole else [slice(at, at + microbatch) for at in range(0, pairs, microbatch)]
    losses = [loss(video[pool], text[pool], model.logit_scale, batch.caption_group[pool]) for pool in pools]
    (config.objective.contrastive_weight * torch.stack(losses).mean()).backward()
    return {piece.name: gradient_of(piece) for piece in engine.pieces}


def gradient_of(piece: Piece) -> Tensor:
    """What `piece` of this rank has as gradient; zero where no loss reaches it."""
    return torch.zeros_like(piece.local.detach()) if piece.local.grad is None else piece.local.grad


def rank_main(rank: int, config: RunConfig, folder: str) -> None:
    """One rank: a step up to clipping; the first rank saves everyone's gradients, whole."""
    torch.set_num_threads(1)
    size = config.layout.world
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    world = lay_out(config.layout, rank, size, torch.device("cpu"))
    engine = build_engine(config, world)
    open_gates(engine)
    own: Gradients = {}

    def keep(pieces: list[Piece], limit: float, world: World) -> Tensor:
        for piece in pieces:
            piece.take_gradient()
            part = piece.like(gradient_of(piece))
            own[piece.name] = part.full_tensor() if isinstance(part, DTensor) else part.clone()
        return torch.tensor(torch.nan)  # not finite: the step ends here

    page.clip_gradients = keep
    share = world.layout.share(world.pair_rank, config.train.global_batch_pairs)
    loader = cast(Loader, WithoutTargets(config, share))
    page.training_step(config, engine, loader, build_optimizer(engine.pieces, config.optimizer), world, 0)
    found: list[Gradients] = [{} for _ in range(size)]
    dist.all_gather_object(found, own)
    if rank == 0:
        torch.save({name: gradient for part in found for name, gradient in part.items()}, f"{folder}/gradients.pt")
    dist.destroy_process_group()


def gradients_of(config: RunConfig) -> Gradients:
    """The gradients of a layout, from as many processes as it has ranks."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            rank_main, (config, folder), nprocs=config.layout.world, start_method="fork"
        )
        found: Gradients = torch.load(f"{folder}/gradients.pt")
        return found


def difference(expected: Gradients, found: Gradients) -> float:
    """The largest relative L2 difference of a tensor; where nothing is expected, of the whole gradient's norm."""
    assert expected.keys() == found.keys(), expected.keys() ^ found.keys()
    whole = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    return max(
        float((found[name] - gradient).norm() / (gradient.norm() or whole)) for name, gradient in expected.items()
    )


def main(cases: list[str]) -> None:
    """Each case is LAYOUT/LOSS/SCOPE; prints their differences from one process, as JSON by case."""
    torch.set_num_threads(1)
    found: dict[str, dict[str, float]] = {}
    for case in cases:
        layout, loss, scope = case.split("/")
        gradients = gradients_of(config_of(layout, loss, scope))
        found[case] = {
            "to_own_scope": difference(plain_gradients(config_of(layout, loss, scope)), gradients),
            "to_global": difference(plain_gradients(config_of(layout, loss, "global")), gradients),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
