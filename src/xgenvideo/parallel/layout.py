"""The arithmetic of a layout: which settings fit together, and which rank does what. Nothing here starts a process."""

from dataclasses import dataclass

from xgenvideo.config import LayoutConfig, RunConfig
from xgenvideo.errors import ConfigError
from xgenvideo.plan.recompute import recompute_ways

MOST_VIRTUAL_STAGES = 3  # with 4, fully_shard repeats its all-gathers: 21 instead of 5 a step, measured


@dataclass(frozen=True)
class Place:
    """Coordinates of a rank on the three axes of the device mesh."""

    pipeline: int
    data: int
    tensor: int


@dataclass(frozen=True)
class Layout:
    """Sizes of the three axes. Tensor ranks are neighbours (they talk most), pipeline stages are farthest apart."""

    pipeline: int
    data: int
    tensor: int

    @staticmethod
    def of(config: LayoutConfig) -> "Layout":
        """The layout that a config asks for."""
        return Layout(config.pipeline, config.data, config.tensor)

    @property
    def ranks(self) -> int:
        """Ranks in all."""
        return self.pipeline * self.data * self.tensor

    @property
    def ranks_per_replica(self) -> int:
        """Ranks that hold one copy of the model between them."""
        return self.pipeline * self.tensor

    def place(self, rank: int) -> Place:
        """Where a rank stands."""
        assert 0 <= rank < self.ranks, f"rank {rank} of {self.ranks}"
        rest, tensor = divmod(rank, self.tensor)
        pipeline, data = divmod(rest, self.data)
        return Place(pipeline, data, tensor)

    def rank(self, place: Place) -> int:
        """The rank that stands at a place: the inverse of `place`."""
        pairs = ((place.pipeline, self.pipeline), (place.data, self.data), (place.tensor, self.tensor))
        assert all(0 <= at < size for at, size in pairs), f"{place} of {self}"
        return (place.pipeline * self.data + place.data) * self.tensor + place.tensor

    def pair_rank(self, rank: int) -> int:
        """Which share of the global batch a rank has: the shares of one replica lie next to each other."""
        place = self.place(rank)
        return place.data * self.ranks_per_replica + place.pipeline * self.tensor + place.tensor

    def share(self, pair_rank: int, pairs: int) -> range:
        """The places in a global batch of `pairs` pairs whose videos a rank encodes: even but for one pair."""
        return range(pairs * pair_rank // self.ranks, pairs * (pair_rank + 1) // self.ranks)


def check_layout(config: RunConfig, world_size: int) -> Layout:
    """The layout of a run on `world_size` ranks. Raises ConfigError: setting, value, rule, nearest valid values.

    Whatever else can be known to be wrong on every rank before one is started is refused here too.
    """
    layout = Layout.of(config.layout)
    _check_tensor(config)
    _check_pipeline(config)
    _check_batch(config, layout)
    if layout.ranks != world_size:
        sizes = f"{layout.tensor} x {layout.pipeline} x {layout.data}"
        rule = f"layout.tensor x layout.pipeline x layout.data = {sizes} = {layout.ranks} ranks, {world_size} are there"
        replicas, rest = divmod(world_size, layout.ranks_per_replica)
        raise ConfigError("layout.data", layout.data, rule, [replicas] if replicas and not rest else [])
    recompute_ways(config)
    if config.model.decoder_from:
        # Here, for it brings transformers: a launcher that starts from no checkpoint needs none.
        from xgenvideo.models.warm_start import LanguageWeights

        LanguageWeights(config)
    return layout


def divisors_near(number: int, value: int, count: int = 4) -> list[int]:
    """The `count` divisors of `number` that are nearest to `value`, ascending."""
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return sorted(sorted(divisors, key=lambda d: abs(d - value))[:count])


def _check_tensor(config: RunConfig) -> None:
    """Every tensor that is cut over the tensor axis must come out even."""
    tensor, decoder = config.layout.tensor, config.model.decoder
    for name in ("heads", "kv_heads", "vocab", "mlp"):
        size = getattr(decoder, name)
        if size % tensor:
            rule = f"must divide model.decoder.{name} = {size}"
            raise ConfigError("layout.tensor", tensor, rule, divisors_near(size, tensor))
    if config.data.text_tokens % tensor:
        rule = f"must divide data.text_tokens = {config.data.text_tokens}: tensor ranks share the sequence"
        raise ConfigError("layout.tensor", tensor, rule, divisors_near(config.data.text_tokens, tensor))


def _check_pipeline(config: RunConfig) -> None:
    """A stage holds at least one block; the schedules need as many microbatches as stages."""
    layout, decoder = config.layout, config.model.decoder
    blocks, stages = decoder.depth + decoder.cross_blocks, layout.pipeline * layout.virtual_stages
    if layout.virtual_stages > MOST_VIRTUAL_STAGES:
        rule = f"must be at most {MOST_VIRTUAL_STAGES}: beyond, weights are gathered again and again"
        raise ConfigError("layout.virtual_stages", layout.virtual_stages, rule, range(1, MOST_VIRTUAL_STAGES + 1))
    if stages > blocks:
        rule = f"times layout.virtual_stages = {layout.virtual_stages} must be at most the {blocks} decoder blocks"
        raise ConfigError("layout.pipeline", layout.pipeline, rule, [blocks // layout.virtual_stages])
    microbatches = config.train.global_batch_pairs // (layout.data * layout.microbatch_pairs)
    if microbatches < layout.pipeline:
        most = config.train.global_batch_pairs // (layout.data * layout.pipeline)
        rule = f"gives {microbatches} microbatches a replica, fewer than layout.pipeline = {layout.pipeline} stages"
        raise ConfigError("layout.microbatch_pairs", layout.microbatch_pairs, rule, [most] if most else [])


def _check_batch(config: RunConfig, layout: Layout) -> None:
    """Every rank has at least one video to encode."""
    pairs = config.train.global_batch_pairs
    if pairs < layout.ranks:
        rule = f"must be at least the {layout.ranks} ranks: each encodes some of the videos"
        raise ConfigError("train.global_batch_pairs", pairs, rule, [layout.ranks])
