"""Matrix products of the decoder's blocks in 8-bit floating point, for GPUs that have units for it (`train.fp8`).

Weights stay as they are; each product scales its two operands to the range of float8, forward and backward
(Micikevicius et al. 2022, arXiv 2209.05433: e4m3 for values, e5m2 for gradients). Embedding, head and the visual world
are left alone. Run on CPUs only so far, where torch computes float8 products slowly but by the same rules.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Shard
from torch.nn import functional

from xgenvideo.config import RunConfig
from xgenvideo.errors import ConfigError
from xgenvideo.parallel.stage import TextStage

VALUES, GRADIENTS = torch.float8_e4m3fn, torch.float8_e5m2
ALIGNED = 16  # a product's inner size and columns, for cuBLAS
CAPABILITY = (8, 9)


def check_fp8(config: RunConfig, device: torch.device) -> None:
    """Refuse a device without float8 units, and sizes that they cannot multiply. Raises ConfigError."""
    found = f"{device.type}"
    if device.type == "cuda":
        found = f"{torch.cuda.get_device_name(device)}, {'.'.join(map(str, torch.cuda.get_device_capability(device)))}"
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < CAPABILITY:
        rule = f"needs a GPU of compute capability 8.9 or more (Ada, Hopper, Blackwell), not {found}"
        raise ConfigError("train.fp8", True, rule, [False])
    decoder, tensor = config.model.decoder, config.layout.tensor
    cut = {"heads x head_size": decoder.heads, "kv_heads x head_size": decoder.kv_heads}
    sizes = {f"model.decoder.{name}": count * decoder.head_size // tensor for name, count in cut.items()}
    sizes |= {"model.decoder.mlp": decoder.mlp // tensor, "model.decoder.width": decoder.width}
    sizes |= {"model.resampler.width": config.model.resampler.width}
    for name, size in sizes.items():
        if size % ALIGNED:
            raise ConfigError("train.fp8", True, f"needs {name} on a rank to be a multiple of {ALIGNED}, not {size}")


def use_fp8(stage: TextStage) -> None:
    """Let the matrices of a stage's blocks multiply in float8, in place; names and values stay."""
    for module in stage.blocks.modules():
        if type(module) is nn.Linear:
            module.__class__ = Float8Linear


class Float8Linear(nn.Linear):
    """A linear layer that multiplies in float8; the result is bfloat16. Cut over tensor ranks, each scales its part."""

    def forward(self, x: Tensor) -> Tensor:
        """x [.. K] -> [.. N]."""
        weight: Tensor = self.weight
        if isinstance(x, DTensor) and isinstance(weight, DTensor):
            made = _product_of_parts(x, weight)
        else:
            made = _product(x, weight)
        return made if self.bias is None else made + self.bias.to(made.dtype)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    rows: Tensor = Product.apply(x.flatten(0, -2), weight)  # type: ignore[no-untyped-call]
    result: Tensor = rows.unflatten(0, x.shape[:-1])
    return result


def _product_of_parts(x: DTensor, weight: DTensor) -> Tensor:
    """This rank's columns of the result, or its term of the sum, as `functional.linear` would place it."""
    by_columns = weight.placements == (Shard(0),)
    assert by_columns or weight.placements == (Shard(1),), f"a matrix cut by {weight.placements}"
    incoming = x.to_local(grad_placements=[Partial() if by_columns else Shard(x.ndim - 1)])
    made = _product(incoming, weight.to_local())
    return DTensor.from_local(
        made, weight.device_mesh, [Shard(x.ndim - 1) if by_columns else Partial()], run_check=False
    )


class Product(torch.autograd.Function):
    """x [M K] times weight [N K] transposed -> [M N] bfloat16; one scale a tensor, from its largest element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Keeps x in float8, and the weight as it is."""
        narrow_x, by_x = narrowed(x, VALUES)
        narrow_weight, by_weight = narrowed(weight, VALUES)
        ctx.save_for_backward(narrow_x, by_x, weight)
        ctx.dtype = x.dtype
        return _multiply(narrow_x, narrow_weight.t(), by_x, by_weight, torch.bfloat16, fast=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of x and of the weight, in their types."""
        narrow_x, by_x, weight = ctx.saved_tensors
        gradient, by_gradient = narrowed(gradients[0], GRADIENTS)
        narrow_weight, by_weight = narrowed(weight, VALUES)
        by_rows = _multiply(gradient, _by_columns(narrow_weight), by_gradient, by_weight, torch.bfloat16, fast=False)
        missing = -len(gradient) % ALIGNED
        rows, inputs = (functional.pad(part.view(torch.uint8), (0, 0, 0, missing)) for part in (gradient, narrow_x))
        turned = rows.t().contiguous().view(GRADIENTS)
        by_matrix = _multiply(turned, _by_columns(inputs.view(VALUES)), by_gradient, by_x, torch.float32, fast=False)
        return by_rows.to(ctx.dtype), by_matrix.to(weight.dtype)


def narrowed(tensor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The tensor in float8, spread over the whole range of the type, and the float32 factor that undoes it."""
    limit = torch.finfo(dtype).max
    scale = limit / tensor.detach().abs().amax().float().clamp(min=1e-12)
    return (tensor.detach() * scale).clamp(-limit, limit).to(dtype).contiguous(), scale.reciprocal()


def _by_columns(matrix: Tensor) -> Tensor:
    """The same matrix, columns contiguous: what the float8 units want of a second operand."""
    return matrix.view(torch.uint8).t().contiguous().view(matrix.dtype).t()


def _multiply(a: Tensor, b: Tensor, by_a: Tensor, by_b: Tensor, dtype: torch.dtype, fast: bool) -> Tensor:
    """a [M K] x b [K N]. `fast` adds up in fewer bits: enough for a forward."""
    return torch._scaled_mm(a, b, scale_a=by_a, scale_b=by_b, out_dtype=dtype, use_fast_accum=fast)
