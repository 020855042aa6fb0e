"""`xgv calibrate`: measure this machine's speeds in about a minute, for `xgv plan RECIPE --gpu FILE`.

Alone it measures one process; under torchrun also collectives and messages between its ranks (rank 0 writes the file):

    xgv calibrate --out calibration.json
    torchrun --nproc-per-node 2 -m xgenvideo.cli calibrate --out calibration.json
"""

import itertools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from xgenvideo.errors import ConfigError
from xgenvideo.objectives import next_token_loss
from xgenvideo.parallel.calibrate import measure_links
from xgenvideo.plan.calibration import Calibration, Product

# Rows, columns, inner: the shapes of the small recipes and of a processor's peak; on a GPU those of large models too.
SHAPES = (
    (32_768, 128, 128),
    (2048, 128, 128),
    (1024, 64, 128),
    (2048, 352, 128),
    (2048, 128, 352),
    (1024, 512, 128),
    (2048, 1024, 128),
    (1024, 1024, 1024),
)
LARGE_SHAPES = ((4096, 4096, 4096), (8192, 8192, 8192), (4096, 2048, 8192), (16_384, 8192, 1664))
NUMBERS = 2**22
DISK_BYTES = 2**26
COLD_BYTES = 2**26
KERNELS_A_LINK = 6  # of a product and a norm: two forward, three and the gradients' sum backward
LEAST_SECONDS = 5.0
ATTENTION = (32, 4, 32, 1056, 32)  # pairs, heads, queries, keys, head size: the resampler's of the tiny recipe


def calibrate(out: Path, seconds: float, say: Callable[[str], None]) -> Calibration:
    """Measure for about `seconds`, write `out` and return what was found. Raises ConfigError for too short a time."""
    if seconds < LEAST_SECONDS:
        raise ConfigError("--seconds", seconds, f"must be at least {LEAST_SECONDS:.0f}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = Clock(device, seconds / 24)
    say(f"measuring {device.type} with {torch.get_num_threads()} threads, about {seconds:.0f} s")
    products = tuple(_product(clock, device, *shape) for shape in shapes(device))
    write, read = disk_speed(out.resolve().parent)
    found = Calibration(
        machine=torch.cuda.get_device_name() if device.type == "cuda" else (platform.processor() or platform.machine()),
        device=device.type,
        threads=torch.get_num_threads(),
        precision=str(dtype_of(device)).removeprefix("torch."),
        memory_bytes=float(memory_bytes(device)),
        products=products,
        copy_bytes_per_second=copy_speed(clock, device),
        norm_seconds=norm_seconds(clock, device),
        activation_seconds=activation_seconds(clock, device),
        addition_seconds=addition_seconds(clock, device),
        score_seconds=score_seconds(clock, device),
        loss_seconds=loss_seconds(clock, device),
        optimizer_seconds=optimizer_seconds(clock, device),
        kernel_seconds=kernel_seconds(clock, device),
        disk_write_bytes_per_second=write,
        disk_read_bytes_per_second=read,
        links=measure_links(device, seconds / 6),
    )
    if int(os.environ.get("RANK", "0")) == 0:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(found.to_json(), encoding="utf-8")
        fastest, copied = found.peak_flops_per_second / 1e9, found.copy_bytes_per_second / 1e9
        say(f"{out}: fastest product {fastest:,.0f} GFLOP/s, copy {copied:.1f} GB/s")
    return found


class Clock:
    """Times a piece of work again and again for `budget` seconds and answers their lower quartile."""

    def __init__(self, device: torch.device, budget: float) -> None:
        self.device, self.budget = device, budget

    def seconds(self, work: Callable[[], object]) -> float:
        """Seconds of one turn of `work`, the device waited for."""
        work()
        found: list[float] = []
        end = time.perf_counter() + self.budget
        while len(found) < 3 or time.perf_counter() < end:
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            found.append(time.perf_counter() - start)
        # Other work on the machine makes turns longer, never shorter.
        return statistics.quantiles(found, n=4)[0]

    def wait(self) -> None:
        """Until the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def shapes(device: torch.device) -> tuple[tuple[int, int, int], ...]:
    """The products to measure."""
    return SHAPES + (LARGE_SHAPES if device.type == "cuda" else ())


def dtype_of(device: torch.device) -> torch.dtype:
    """What the recipes compute in on such a device."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def memory_bytes(device: torch.device) -> int:
    """The device's memory in all."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _random(device: torch.device, *shape: int, grad: bool = False) -> Tensor:
    return torch.randn(*shape, device=device, dtype=dtype_of(device)).requires_grad_(grad)


def _product(clock: Clock, device: torch.device, rows: int, columns: int, inner: int) -> Product:
    """Mean of the three products of a training step: forward, and the gradients of input and weight."""
    weight = _random(device, columns, inner)
    # Operands come from memory, as in a step: each turn takes another of as many as fill COLD_BYTES.
    turns = max(1, min(64, int(COLD_BYTES / (weight.element_size() * rows * (inner + columns)))))
    operands = [(_random(device, rows, inner), _random(device, rows, columns)) for _ in range(turns)]
    turn = itertools.cycle(operands)

    def work() -> None:
        x, pull = next(turn)
        functional.linear(x, weight)
        pull @ weight
        pull.T @ x

    return Product(rows, columns, inner, clock.seconds(work) / 3)


def copy_speed(clock: Clock, device: torch.device) -> float:
    """Bytes a second read and written by a large copy."""
    source = _random(device, 8 * NUMBERS)
    target = torch.empty_like(source)
    return 2.0 * source.numel() * source.element_size() / clock.seconds(lambda: target.copy_(source))


def _with_backward(clock: Clock, run: Callable[[], Tensor], *leaves: Tensor) -> float:
    """Seconds of forward and backward."""
    pull = torch.ones_like(run().detach())

    def work() -> None:
        torch.autograd.grad(run(), leaves, pull)

    return clock.seconds(work)


def norm_seconds(clock: Clock, device: torch.device) -> float:
    """Forward and backward of a layer norm, for one number."""
    x = _random(device, NUMBERS // 512, 128, grad=True)
    weight, bias = (_random(device, 128, grad=True) for _ in "wb")
    return _with_backward(clock, lambda: functional.layer_norm(x, (128,), weight, bias), x, weight, bias) / x.numel()


def activation_seconds(clock: Clock, device: torch.device) -> float:
    """Forward and backward of SiLU, for one number."""
    x = _random(device, NUMBERS // 4, grad=True)
    return _with_backward(clock, lambda: functional.silu(x), x) / x.numel()


def addition_seconds(clock: Clock, device: torch.device) -> float:
    """Forward and backward of a product of two tensors, number by number: three passes, into memory that is there."""
    x, y, out = (_random(device, NUMBERS) for _ in "xyo")

    def work() -> None:
        for _ in range(3):
            torch.mul(x, y, out=out)

    return clock.seconds(work) / x.numel()


def score_seconds(clock: Clock, device: torch.device) -> float:
    """Forward and backward of masked attention, for one score (a query and a key of one head)."""
    pairs, heads, queries, keys, size = ATTENTION
    q, k, v = (_random(device, pairs, heads, length, size, grad=True) for length in (queries, keys, keys))
    mask = torch.ones(pairs, 1, 1, keys, dtype=torch.bool, device=device)
    run = _with_backward(clock, lambda: functional.scaled_dot_product_attention(q, k, v, attn_mask=mask), q, k, v)
    return run / (pairs * heads * queries * keys)


def loss_seconds(clock: Clock, device: torch.device) -> float:
    """Forward and backward of the cross-entropy, for one logit."""
    logits = _random(device, 2048, 1024, grad=True)
    targets = torch.zeros(2048, dtype=torch.long, device=device)
    return _with_backward(clock, lambda: next_token_loss(logits[None], targets[None])[0], logits) / logits.numel()


def optimizer_seconds(clock: Clock, device: torch.device) -> float:
    """AdamW's step and the gradient's norm, for one parameter."""
    weights = [torch.nn.Parameter(torch.randn(128, 128, device=device)) for _ in range(100)]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer = torch.optim.AdamW(weights)

    def work() -> None:
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()

    return clock.seconds(work) / sum(weight.numel() for weight in weights)


def kernel_seconds(clock: Clock, device: torch.device) -> float:
    """What one kernel costs beyond its work: forward and backward of a chain of products and norms of a few numbers."""
    x, weight = _random(device, 8, 8, grad=True), _random(device, 8, 8, grad=True)
    links = 50

    def work() -> None:
        y = x
        for _ in range(links):
            y = functional.layer_norm(functional.linear(y, weight), (8,))
        torch.autograd.grad(y.sum(), (x, weight))

    return clock.seconds(work) / (links * KERNELS_A_LINK)


def disk_speed(folder: Path) -> tuple[float, float]:
    """Bytes a second written (and fsynced) and read back in `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    data = os.urandom(2**20) * (DISK_BYTES // 2**20)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".calibration") as file:
        start = time.perf_counter()
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter() - start
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        Path(file.name).read_bytes()
        return DISK_BYTES / written, DISK_BYTES / (time.perf_counter() - start)
