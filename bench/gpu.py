"""A slice of the 30.2 B model on one GPU (six layers of a stage, the frozen encoder, fp8, memory), then all of one_gpu.

Run: make bench-gpu (writes bench/results/gpu.json); `--small --device cpu` runs the same code on any machine in seconds
and writes nothing. Six layers are five self-attention blocks and one cross-attention block, in the shapes of a TP4 rank
(heads and feed-forward divided by four, no communication) and of TP1. MFU counts forward once and backward twice, the
full square of causal attention, no recompute; it is given against the fastest large matrix product that this GPU did in
the same run, against 790 TFLOP/s, which such products reach on an H100, and against the data sheet. After the slice
comes the recipe `one_gpu` end to end (gpu_recipe.py). Nothing here has run on a GPU yet, but in small shapes on CPUs.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from fair import RESULTS, ROUNDS, write
from gpu_recipe import SMALL, end_to_end
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from xgenvideo import recipes
from xgenvideo.config import RunConfig, override
from xgenvideo.models.decoder import CrossBlock, SelfBlock
from xgenvideo.models.layers import block_mask, rotary, text_mask
from xgenvideo.models.vision import frozen_vision, narrow_products
from xgenvideo.parallel.fp8 import Float8Linear
from xgenvideo.plan.flops import cross_block_flops, frame_flops, self_block_flops
from xgenvideo.plan.hardware import GPUS, H100
from xgenvideo.plan.memory import block_activation_bytes

SELF_BLOCKS, WARM_UP, DOCUMENTS = 5, 3, 8
H100_PRODUCT = 790e12  # FLOP/s, dense bf16
TOKENS, FRAMES, PRODUCT = (4096, 8192), 256, 8192


@dataclass(frozen=True)
class Row:
    """One measurement. MFU are shares of one; the data sheet is the H100's where the device has none that is known.

    `planned_gb` is the planner's figure for `peak_gb`, which is 0 without a GPU.
    """

    what: str
    seconds: float
    tflops_per_second: float
    mfu_of_measured_peak: float
    mfu_of_h100_product: float
    mfu_of_data_sheet: float
    tokens_per_second: float
    peak_gb: float
    planned_gb: float | None

    def __str__(self) -> str:
        shares = self.mfu_of_measured_peak, self.mfu_of_h100_product, self.mfu_of_data_sheet
        here, product, sheet = (f"{share:.1%}" for share in shares)
        told = f"{self.what:48} {self.seconds * 1e3:9.2f} ms {self.tflops_per_second:8.3g} TFLOP/s"
        told += f"  {here} of the measured peak, {product} of {H100_PRODUCT / 1e12:.0f}, {sheet} of the data sheet"
        memory = "" if self.planned_gb is None else f", planned {self.planned_gb:.2f}"
        return f"{told}, {self.tokens_per_second:.3g}/s, {self.peak_gb:.2f} GB{memory}"


class Slice(nn.Module):
    """Five self-attention blocks and a cross-attention block."""

    def __init__(self, config: RunConfig, tensor: int) -> None:
        super().__init__()
        whole = config.model.decoder
        self.local = replace(
            whole, heads=whole.heads // tensor, kv_heads=max(1, whole.kv_heads // tensor), mlp=whole.mlp // tensor
        )
        self.blocks = nn.ModuleList(SelfBlock(self.local) for _ in range(SELF_BLOCKS))
        self.cross = CrossBlock(self.local, config.model.resampler.width)

    def forward(self, x: Tensor, latents: Tensor, sees: Tensor, mask: Tensor | BlockMask | None = None) -> Tensor:
        """x [1 T D] -> [1 T D]; one document a row where there is no mask."""
        turn = rotary(torch.arange(x.shape[1], device=x.device)[None], self.local)
        x = self.cross(x, latents, sees)
        for block in self.blocks:
            x = block(x, *turn, mask)
        return x

    def flops(self, config: RunConfig, tokens: int) -> float:
        """Forward FLOPs over `tokens`, full square."""
        linear, attention = self_block_flops(self.local, tokens)
        resampler = config.model.resampler
        return SELF_BLOCKS * (linear + attention) + cross_block_flops(
            self.local, tokens, resampler.queries, resampler.width
        )


class Bench:
    """The device, its peaks, and the clock."""

    def __init__(self, device: torch.device, product: int) -> None:
        self.device = device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        known = [gpu for gpu in GPUS if gpu.name.upper() in name.upper().split()]
        self.name, self.nominal = name, (known[0] if known else H100).bf16_flops_per_second
        a, b = (torch.randn(product, product, device=device, dtype=torch.bfloat16) for _ in range(2))
        self.measured = 2 * product**3 / self.seconds(lambda: a @ b)

    def seconds(self, work: Callable[[], object]) -> float:
        """Median seconds of a call, after some that are not counted."""
        taken = []
        for number in range(WARM_UP + ROUNDS):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            if number >= WARM_UP:
                taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def wait(self) -> None:
        """Until the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def row(self, what: str, work: Callable[[], object], flops: float, tokens: int, planned: float | None) -> Row:
        """Measure `work`, which does `flops` over `tokens`."""
        self.forget_peak()
        return self.of(what, self.seconds(work), flops, tokens, planned)

    def forget_peak(self) -> None:
        """Count the most memory from now on."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def of(self, what: str, seconds: float, flops: float, tokens: float, planned: float | None) -> Row:
        """The row of work that took `seconds`."""
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
        rate, gigabytes = flops / seconds, None if planned is None else planned / 1e9
        shares = rate / self.measured, rate / H100_PRODUCT, rate / self.nominal
        return Row(what, seconds, rate / 1e12, *shares, tokens / seconds, peak / 1e9, gigabytes)


def layers(bench: Bench, config: RunConfig, tensor: int, tokens: int, fp8: bool, packed: str = "") -> Row:
    """Forward and backward of the slice; `packed`: eight documents a row, by a "dense" mask or by "flex" blocks, made
    anew each time. FLOPs are those of one document, so that rows compare.
    """
    part = Slice(config, tensor).to(bench.device, torch.bfloat16)
    if fp8:
        for module in part.modules():
            if type(module) is nn.Linear:
                module.__class__ = Float8Linear
    if bench.device.type == "cuda":
        for block in (*part.blocks, part.cross):
            block.compile()
    width, resampler = config.model.decoder.width, config.model.resampler
    options: dict[str, Any] = {"device": bench.device, "dtype": torch.bfloat16}
    x = torch.randn(1, tokens, width, requires_grad=True, **options)
    latents = torch.randn(1, resampler.queries, resampler.width, requires_grad=True, **options)
    sees, gradient = torch.ones(1, tokens, dtype=torch.bool, device=bench.device), torch.randn_like(x)

    documents = torch.arange(tokens, device=bench.device)[None] // -(-tokens // DOCUMENTS)

    def work() -> None:
        mask: Tensor | BlockMask | None = None
        if packed:
            mask = text_mask(documents, x.dtype) if packed == "dense" else block_mask(documents)
        part(x, latents, sees, mask).backward(gradient)
        part.zero_grad(set_to_none=True)

    parameters = sum(parameter.numel() for parameter in part.parameters())
    own = replace(config, model=replace(config.model, decoder=part.local), layout=replace(config.layout, tensor=1))
    activations = SELF_BLOCKS * block_activation_bytes(own, tokens, cross=False)
    activations += block_activation_bytes(own, tokens, cross=True)
    what = f"six layers, TP{tensor} shape, {tokens} tokens{', fp8' if fp8 else ''}"
    what += f", packed, {packed} mask" if packed else ""
    return bench.row(what, work, 3 * part.flops(config, tokens), tokens, 2 * 2.0 * parameters + activations)


def encoder(bench: Bench, config: RunConfig, frames: int) -> Row:
    """The frozen encoder, forward alone, in the precision that a run in bf16 gives it."""
    vision = frozen_vision(config.model.vision).to(bench.device)
    narrow_products(vision)
    size = config.model.vision.image_size
    pictures = torch.randint(0, 256, (frames, 3, size, size), dtype=torch.uint8, device=bench.device)
    flops = frames * frame_flops(config.model.vision)

    def look() -> torch.Tensor:
        with torch.autocast(bench.device.type, torch.bfloat16):
            seen: torch.Tensor = vision(pictures)
        return seen

    return bench.row(f"frozen encoder, {frames} frames", look, flops, frames, None)


def small(config: RunConfig) -> RunConfig:
    """The same shapes divided, for a machine without a GPU."""
    return override(
        config,
        [
            *("model.decoder.width=128", "model.decoder.heads=8", "model.decoder.kv_heads=4", "model.decoder.mlp=512"),
            *("model.decoder.head_size=16", "model.resampler.width=64", "model.resampler.heads=4"),
            *("model.vision.width=64", "model.vision.heads=4", "model.vision.depth=2", "model.vision.mlp=128"),
            "model.vision.weights=random:0",
        ],
    )


def measure(bench: Bench, config: RunConfig, tokens: tuple[int, ...], frames: int) -> list[Row]:
    """Every row of the slice; fp8 where the device has units for it, and on a CPU, which computes it slowly."""
    fp8 = bench.device.type != "cuda" or torch.cuda.get_device_capability(bench.device) >= (8, 9)
    rows = [encoder(bench, config, frames)]
    for tensor in (4, 1):
        for count in tokens:
            for eight in (False, True)[: 1 + fp8]:
                rows.append(layers(bench, config, tensor, count, eight))
                torch.cuda.empty_cache() if bench.device.type == "cuda" else None
            # On a CPU FlexAttention has no backward.
            for packed in ("dense", "flex")[: 1 + (bench.device.type == "cuda")]:
                rows.append(layers(bench, config, tensor, count, fp8=False, packed=packed))
    return rows


def recipe(bench: Bench, settings: tuple[str, ...], small: bool) -> tuple[list[Row], float]:
    """The rows of `one_gpu` end to end, and which share of a step waits for its batch."""
    bench.forget_peak()
    found = end_to_end(
        bench.device, (*SMALL, *settings) if small else settings, *((1, 2) if small else (WARM_UP, ROUNDS))
    )
    rows = [
        bench.of(f"one_gpu, whole step, {name}", one.seconds, one.flops, one.tokens, one.planned_bytes)
        for name, one in found.items()
    ]
    return rows, next(one.waited / one.seconds for one in found.values())


def narrow_over_wide(rows: list[Row]) -> dict[str, float]:
    """Tokens a second in fp8 over bf16, by slice."""
    rates = {row.what: row.tokens_per_second for row in rows}
    return {what: rates[f"{what}, fp8"] / rate for what, rate in rates.items() if f"{what}, fp8" in rates}


def main() -> None:
    """Measure, print, and write the results of a real run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="small shapes, nothing written: shows that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    parser.add_argument("settings", nargs="*", metavar="section.field=value", help="of the recipe one_gpu")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench/gpu.py needs a GPU; `--small --device cpu` shows that it runs without one")
    config = recipes.find("video_30b")
    bench = Bench(torch.device(options.device), 256 if options.small else PRODUCT)
    peaks = bench.measured, H100_PRODUCT, bench.nominal
    told = [f"{peak / 1e12:.3g}" for peak in peaks]
    print(f"{bench.name}: {told[0]} TFLOP/s measured here, {told[1]} by an H100, {told[2]} by the data sheet, bf16")
    sizes = ((64, 128), 2) if options.small else (TOKENS, FRAMES)
    rows = measure(bench, small(config) if options.small else config, *sizes)
    whole, waiting = recipe(bench, tuple(options.settings), options.small)
    print(*rows, *whole, sep="\n")
    ratios = narrow_over_wide(rows)
    for what, ratio in ratios.items():
        print(f"{what}: fp8 over bf16, tokens a second: {ratio:.2f}")
    print(f"one_gpu: {waiting:.1%} of a step waits for its batch")
    if options.small:
        return
    about = dict(zip(("measured_peak", "h100_product", "data_sheet_peak"), peaks, strict=True)) | {"rounds": ROUNDS}
    values = {"about": about, "rows": [asdict(row) for row in (*rows, *whole)], "fp8_over_bf16": ratios}
    write(options.out, values | {"one_gpu_waits_for_data": waiting})


if __name__ == "__main__":
    main()
