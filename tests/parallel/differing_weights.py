"""One rank: lay out an engine with others, flip a bit of what they should hold alike, and compare."""

import json
import sys

import torch
import torch.distributed as dist

from xgenvideo import recipes
from xgenvideo.config import override
from xgenvideo.errors import TrainError
from xgenvideo.parallel.engine import build_engine
from xgenvideo.parallel.health import check_weights, slowest
from xgenvideo.parallel.world import lay_out


def main(rank: int, size: int, store: str) -> None:
    """Print what the comparison says: as built, then with a bit flipped in the encoder, in a decoder weight, in the
    temperature.
    """
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    layout = [f"layout.data={size}", "layout.microbatch_pairs=1", "layout.data_parallel=replicate"]
    config = override(recipes.find("tiny"), [*layout, f"train.global_batch_pairs={size}"])
    world = lay_out(config.layout, rank, size, torch.device("cpu"))
    engine = build_engine(config, world)
    told = [compared(engine, world)]
    weight = next(engine.model.vision.parameters())
    with torch.no_grad():
        if rank == 1:
            flip(weight)
        told.append(compared(engine, world))
        if rank == 1:
            flip(weight)
        piece = next(piece for piece in engine.pieces if piece.name.endswith("mlp.down.weight"))
        if rank == 2:
            flip(piece.local)
        told.append(compared(engine, world))
        if rank == 2:
            flip(piece.local)
        if rank == 0:
            flip(engine.model.logit_scale)
        told.append(compared(engine, world))
    slow = slowest(world, {"load": 1.0 + (rank == 1) * 9.0, "encode": 1.0, "learn": 50.0}, steps=2)
    print(json.dumps([*told, str(slow)]))
    dist.destroy_process_group()


def flip(tensor: torch.Tensor) -> None:
    """The lowest bit of one element."""
    bits = tensor.view(torch.int32)
    bits.view(-1)[bits.numel() // 2] ^= 1


def compared(engine: object, world: object) -> str:
    """What `check_weights` says, or nothing."""
    try:
        check_weights(engine, world, 7)  # type: ignore[arg-type]
    except TrainError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
