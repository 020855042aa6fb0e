"""A machine that `xgv calibrate` measured, and the step time of one process on it.

Kernels on a processor (or a small GPU) are not what rates fitted on H100 say, so here every kind of kernel has its own
measured speed: products by shape, attention by score, norms, activations and copies by number, the optimizer by
parameter. What is counted is what the model's forward and backward run (models/, train/step.py).
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xgenvideo.config import RunConfig
from xgenvideo.errors import ConfigError
from xgenvideo.plan.parameters import parameters

VERSION = 1
BACKWARD_PRODUCTS = 2  # for each of the forward's


@dataclass(frozen=True)
class Product:
    """One measured matrix product [rows, inner] x [inner, columns]: seconds of the forward alone."""

    rows: int
    columns: int
    inner: int
    seconds: float

    @property
    def flops_per_second(self) -> float:
        """What this shape reached."""
        return 2.0 * self.rows * self.columns * self.inner / self.seconds


@dataclass(frozen=True)
class Link:
    """Seconds of a collective or message: `latency` and bytes a second, over `ranks` processes with `backend`."""

    kind: str
    backend: str
    ranks: int
    latency_seconds: float
    bytes_per_second: float


@dataclass(frozen=True)
class Calibration:
    """What was measured. `*_seconds` are for one number, forward and backward together, unless said."""

    machine: str
    device: str
    threads: int
    precision: str
    memory_bytes: float
    products: tuple[Product, ...]
    copy_bytes_per_second: float
    norm_seconds: float
    activation_seconds: float
    addition_seconds: float
    score_seconds: float
    loss_seconds: float
    optimizer_seconds: float
    kernel_seconds: float
    disk_write_bytes_per_second: float
    disk_read_bytes_per_second: float
    links: tuple[Link, ...] = ()

    @property
    def peak_flops_per_second(self) -> float:
        """The fastest product measured."""
        return max(product.flops_per_second for product in self.products)

    def to_json(self) -> str:
        """As the text of the file that `xgv calibrate` writes."""
        return json.dumps({"version": VERSION, **dataclasses.asdict(self)}, indent=2) + "\n"


@dataclass(frozen=True)
class LocalStep:
    """Seconds of one step of one process by kind of kernel; their sum is the step."""

    products: float
    attention: float
    norms_and_activations: float
    loss: float
    optimizer: float
    kernels: float
    gradients: float

    @property
    def total(self) -> float:
        """The whole step."""
        compute = self.products + self.attention + self.norms_and_activations + self.loss
        return compute + self.optimizer + self.kernels + self.gradients


def read_calibration(path: Path) -> Calibration:
    """What `xgv calibrate` wrote. Raises ConfigError where the file is not that."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("version") != VERSION:
            raise ConfigError("--gpu", str(path), f"is not of version {VERSION}; run xgv calibrate again")
        products = tuple(Product(**product) for product in values.pop("products"))
        links = tuple(Link(**link) for link in values.pop("links"))
        return Calibration(**values, products=products, links=links)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError("--gpu", str(path), f"is no calibration ({error}); run xgv calibrate") from error


def product_seconds(calibration: Calibration, rows: float, columns: float, inner: float) -> float:
    """Seconds of a product, at the speed of the measured shapes nearest to it (inverse distance of logarithms)."""
    near = []
    for known in calibration.products:
        ratios = (rows / known.rows, columns / known.columns, inner / known.inner)
        near.append((sum(math.log2(ratio) ** 2 for ratio in ratios), known.flops_per_second))
    near.sort()
    weights = [(1 / (distance + 0.1), speed) for distance, speed in near[:4]]
    speed = math.exp(sum(weight * math.log(speed) for weight, speed in weights) / sum(weight for weight, _ in weights))
    return 2.0 * rows * columns * inner / speed


@dataclass
class _Count:
    """Adds up what the model runs."""

    calibration: Calibration
    products: float = 0.0
    scores: float = 0.0
    norms: float = 0.0
    activations: float = 0.0
    additions: float = 0.0
    kernels: float = 0.0

    def product(self, rows: float, columns: float, inner: float, trained_input: bool = True) -> None:
        """Forward and backward of one product; without a trained input there is no gradient for it."""
        times = 1 + BACKWARD_PRODUCTS - (0 if trained_input else 1)
        self.products += times * product_seconds(self.calibration, rows, columns, inner)
        self.kernels += 2 * times


def local_step(config: RunConfig, calibration: Calibration) -> LocalStep:
    """Seconds of one step of `config` on one process of a calibrated machine, pairs at full length, features cached.

    Replicas are added as one all-reduce of the gradients. Raises ConfigError for a layout with tensor or pipeline axes,
    a machine calibrated with fewer ranks than the layout's, or features that are not cached.
    """
    layout = config.layout
    if layout.tensor * layout.pipeline > 1:
        raise ConfigError("layout", layout.world, "a calibrated machine is planned without tensor and pipeline axes")
    if not config.data.cache_features:
        raise ConfigError("data.cache_features", False, "a calibrated machine is planned with cached features", [True])
    microbatches = config.train.global_batch_pairs // (layout.data * layout.microbatch_pairs)
    count = _Count(calibration)
    _resampler(config, count)
    _decoder(config, count)
    model, b, tokens = config.model, layout.microbatch_pairs, config.data.text_tokens
    plain = count.norms * calibration.norm_seconds + count.activations * calibration.activation_seconds
    plain += count.additions * calibration.addition_seconds
    trained = parameters(model).trainable
    again = 1.0 if microbatches == 1 else 1.25  # a text pass, and the resampler's forward twice
    return LocalStep(
        products=microbatches * again * count.products,
        attention=microbatches * again * count.scores * calibration.score_seconds,
        norms_and_activations=microbatches * again * plain,
        loss=microbatches * b * tokens * model.decoder.vocab * calibration.loss_seconds,
        optimizer=trained * calibration.optimizer_seconds,
        kernels=microbatches * again * count.kernels * calibration.kernel_seconds,
        gradients=_gradient_seconds(calibration, layout.data, 4.0 * trained),
    )


def _gradient_seconds(calibration: Calibration, ranks: int, moved_bytes: float) -> float:
    if ranks == 1:
        return 0.0
    for link in calibration.links:
        if link.kind == "all_reduce" and link.ranks >= ranks:
            return link.latency_seconds + moved_bytes / link.bytes_per_second
    raise ConfigError(
        "layout.data", ranks, "no all-reduce of so many ranks was measured; run xgv calibrate under torchrun"
    )


def _resampler(config: RunConfig, count: _Count) -> None:
    resampler, vision, b = config.model.resampler, config.model.vision, config.layout.microbatch_pairs
    w, queries = resampler.width, b * resampler.queries
    media = b * config.data.frames * vision.patches
    keys = media + queries
    count.product(media, w, vision.width, trained_input=False)
    count.norms += media * vision.width
    count.additions += 2 * media * w
    for _ in range(resampler.depth):
        count.product(queries, w, w)
        count.product(keys, w, w)
        count.product(keys, w, w)
        count.product(queries, w, w)
        count.product(queries, 4 * w, w)
        count.product(queries, w, 4 * w)
        count.scores += resampler.heads * queries * (keys / b)
        count.norms += media * w + 2 * queries * w
        count.activations += 4 * queries * w
        # The concatenation of media and latents and its backward, keys and values turned to heads first and back, their
        # gradients' sum; the sum of this layer's gradient of the media with the others'.
        count.additions += 5 * keys * w + media * w + 2 * queries * w
        count.kernels += 40
    count.norms += queries * w


def _decoder(config: RunConfig, count: _Count) -> None:
    decoder, b, tokens = config.model.decoder, config.layout.microbatch_pairs, config.data.text_tokens
    latents, latent_width = b * config.model.resampler.queries, config.model.resampler.width
    d, rows = decoder.width, b * tokens
    inner, grouped = decoder.heads * decoder.head_size, decoder.kv_heads * decoder.head_size
    for cross in [False] * decoder.depth + [True] * decoder.cross_blocks:
        keys, source = (latents, latent_width) if cross else (rows, d)
        count.product(rows, inner, d)
        count.product(keys, grouped, source)
        count.product(keys, grouped, source)
        count.product(rows, d, inner)
        count.product(rows, decoder.mlp, d)
        count.product(rows, decoder.mlp, d)
        count.product(rows, d, decoder.mlp)
        count.scores += decoder.heads * rows * (keys / b)
        count.norms += 2 * rows * d + (rows * inner + keys * grouped if cross else 0)
        count.activations += rows * decoder.mlp
        # The MLP's gate, two residual sums, heads turned to the front and back, RMSNorm's passes beside a fused norm's.
        count.additions += rows * (decoder.mlp + 2 * d + 4 * inner) + 4 * keys * grouped + 4 * rows * d
        if not cross:  # rotary positions: two products, a sign, a concatenation and a sum on queries and keys
            count.additions += 4 * rows * (inner + grouped)
        count.kernels += 60
    count.product(rows, decoder.vocab, d)
    count.norms += 2 * rows * d
