"""Tensor parallelism of the decoder as DTensor plans, with sequence parallelism between the matrices.

Megatron's cut (arXiv 1909.08053, 2205.05198): matrices that widen are cut by columns, those that narrow by rows; the
residual stream between them is cut along the sequence. Attention heads and the vocabulary are cut with their matrices.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.distributed.tensor.parallel.style import ParallelStyle

from xgenvideo.models.decoder import CrossBlock
from xgenvideo.parallel.stage import TextStage

SEQUENCE, HEADS, LAST = Shard(1), 1, Shard(-1)


class GatheredNorm(SequenceParallel):
    """A norm over this rank's part of the sequence whose result comes out whole, as a DTensor.

    It stays a DTensor so that the matrices that read it add up their gradients before the one reduce-scatter.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return distribute_module(
            module,
            device_mesh,
            self._replicate_module_fn,
            partial(self._prepare_input_fn, self.sequence_sharding),
            gathered,  # type: ignore[arg-type]
        )


class FinishedRows(RowwiseParallel):
    """An embedding cut by rows whose result is a plain tensor.

    A sum over ranks that is still under way is a tensor of a class of its own, and torch.compile gives an input of that
    class a gradient of zero (2.13; pytorch#179849 unwraps it outside autograd): the embedding would not be trained.
    """

    @staticmethod
    def _prepare_output_fn(
        output_layouts: Any, use_local_output: bool, mod: nn.Module, outputs: Any, device_mesh: DeviceMesh
    ) -> Tensor:
        made = RowwiseParallel._prepare_output_fn(output_layouts, use_local_output, mod, outputs, device_mesh)
        whole: Tensor = made.clone()  # waits
        return whole


def gathered(module: nn.Module, output: DTensor, device_mesh: DeviceMesh) -> DTensor:
    """The output of a norm, whole on every rank of the mesh."""
    return output.redistribute(placements=[Replicate()])


def cut_tensors(stage: TextStage, mesh: DeviceMesh) -> None:
    """Cut a stage's parameters over the tensor axis `mesh`, in place."""
    plan: dict[str, ParallelStyle] = {}
    for name, block in stage.blocks.items():
        parts = _cross_plan() if isinstance(block, CrossBlock) else _self_plan(block)
        plan |= {f"blocks.{name}{'.' * bool(part)}{part}": style for part, style in parts.items()}
    if stage.first:
        plan["embedding"] = FinishedRows(input_layouts=Replicate(), output_layouts=SEQUENCE)
    if stage.embeds_text:
        layouts = (SEQUENCE, None), (Replicate(), None)
        plan["at_caption_end"] = PrepareModuleInput(
            input_layouts=layouts[0], desired_input_layouts=layouts[1], use_local_output=True
        )
    if stage.last:
        plan |= {"norm": GatheredNorm(), "head": ColwiseParallel(output_layouts=LAST, use_local_output=False)}
    parallelize_module(stage, mesh, plan, src_data_rank=None)


def _self_plan(block: nn.Module) -> dict[str, ParallelStyle]:
    plan: dict[str, ParallelStyle] = {"attention_norm": GatheredNorm(), "mlp_norm": GatheredNorm()}
    plan |= {name: ColwiseParallel() for name in ("q", "k", "v", "mlp.gate", "mlp.up")}
    plan |= {name: RowwiseParallel(output_layouts=SEQUENCE) for name in ("out", "mlp.down")}
    # Norms of single heads see this rank's heads.
    heads = [name for name in ("q_norm", "k_norm") if isinstance(getattr(block, name, None), nn.RMSNorm)]
    return plan | {name: SequenceParallel(sequence_dim=HEADS, use_local_output=True) for name in heads}


def _cross_plan() -> dict[str, ParallelStyle]:
    plan: dict[str, ParallelStyle] = {"attention_norm": GatheredNorm(), "mlp_norm": GatheredNorm()}
    plan |= {name: ColwiseParallel() for name in ("q", "k", "v", "mlp.gate", "mlp.up")}
    plan |= {name: RowwiseParallel(output_layouts=SEQUENCE) for name in ("out", "mlp.down")}
    plan |= {name: SequenceParallel(sequence_dim=HEADS, use_local_output=True) for name in ("q_norm", "k_norm")}
    plan |= {name: SequenceParallel(use_local_output=True) for name in ("attention_gate", "mlp_gate")}
    # Which tokens may see the video is known for the whole sequence; a rank needs its part of it.
    plan[""] = PrepareModuleInput(
        input_layouts=(None, None, Replicate()), desired_input_layouts=(None, None, SEQUENCE), use_local_output=True
    )
    return plan
