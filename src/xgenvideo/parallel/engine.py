"""What one rank trains: its part of the model, cut, sharded and filled, in the two worlds that the step talks to."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xgenvideo.config import RunConfig
from xgenvideo.errors import ConfigError
from xgenvideo.models.initial import Box, starting_value
from xgenvideo.models.video_lm import VideoLM
from xgenvideo.models.vision import build_vision, encoder_hash, narrow_products
from xgenvideo.models.warm_start import LanguageWeights
from xgenvideo.parallel.fp8 import check_fp8, use_fp8
from xgenvideo.parallel.pipeline import Pipeline, stream_dtype
from xgenvideo.parallel.shards import Piece, Value, box_of, materialise, pieces_of, reshard, shard_modules
from xgenvideo.parallel.stage import TextStage
from xgenvideo.parallel.tensor import cut_tensors
from xgenvideo.parallel.text import PipedDecoder, TextWorld, WholeDecoder
from xgenvideo.parallel.visual import Trunk, VisualWorld
from xgenvideo.parallel.world import World
from xgenvideo.plan.pipeline import Stage, cut, rank_of
from xgenvideo.plan.recompute import recompute_ways


@dataclass(eq=False)
class Engine:
    """The model of a rank. `model` has only what the rank holds, under the names of the whole; `pieces` are trained.

    `stages` is the cut of the whole pipeline, `held` what this rank has of it. `encoder_hash` names the frozen encoder
    by the weights that were read, whatever type they are held in.
    """

    model: VideoLM
    visual: VisualWorld
    text: TextWorld
    pieces: list[Piece]
    stages: tuple[Stage, ...]
    held: list[TextStage]
    encoder_hash: str

    def __repr__(self) -> str:
        held = sum(piece.local.numel() for piece in self.pieces)
        return f"Engine({len(self.pieces)} parameters, {held:,} of their elements on this rank)"

    def gates(self, world: World) -> dict[str, float]:
        """tanh of every gate of the whole model by name: how far each cross block has opened. All ranks call it."""
        blocks = self.model.config.decoder.cross_before
        names = [f"{block}.{gate}" for block in blocks for gate in ("attention_gate", "mlp_gate")]
        values = torch.zeros(len(names), device=world.device)
        for piece in self.pieces:
            name = piece.name.removeprefix("decoder.cross.").removesuffix(".weight")
            if piece.name.endswith("_gate.weight") and piece.owned and piece.local.numel():
                values[names.index(name)] = piece.local.detach().tanh().float()[0]
        return dict(zip(names, world.sum(values).tolist(), strict=True))

    def rest(self) -> None:
        """After passes without a backward: only shards of the weights stay, as after a step."""
        for part in (*self.held, self.visual.trunk):
            reshard(part)

    def parameters(self, world: World) -> tuple[int, int]:
        """Parameters of the whole model, and those of them that are trained. All ranks call it."""
        owned = sum(piece.local.numel() for piece in self.pieces if piece.owned)
        trained = int(world.sum(torch.tensor(owned, device=world.device)))
        return trained + sum(parameter.numel() for parameter in self.model.vision.parameters()), trained


def build_engine(config: RunConfig, world: World, value: Value | None = None) -> Engine:
    """The engine of this rank. Weights are a pure function of the config, or what `value(name, shape, box)` gives.

    Nothing is made whole but one parameter at a time: the model is laid out on the meta device first. Raises
    ConfigError where `model.decoder_from` does not fit.
    """
    layout = config.layout
    if config.train.fp8:
        check_fp8(config, world.device)
    if config.train.flex_attention and world.device.type != "cuda":
        raise ConfigError(
            "train.flex_attention", True, f"has a backward on a GPU alone, and this is {world.device}", [False]
        )
    model, texts, trunk, stages = lay_out_parts(config, world)
    named = fill(model, [*texts, trunk], config, world, value or default_value(config))
    model.vision = build_vision(config.model.vision)
    encoder = encoder_hash(model.vision)
    model.vision.to(world.device, masters_dtype(config))
    # Features that are cached are made once, in full precision, for runs of any precision.
    if config.train.precision == "bf16" and not config.data.cache_features:
        narrow_products(model.vision)
    model.train()
    pieces = pieces_of([(name, model.get_parameter(name)) for name in sorted(named)], world)
    # Sharded weights are cast when they are gathered; those of a single process are cast by autocast.
    autocast = config.train.precision == "bf16" and world.groups is None
    trunk_dtype = masters_dtype(config) if world.groups is None else stream_dtype(config)
    visual = VisualWorld(model.vision, trunk, layout.microbatch_pairs, trunk_dtype, autocast)
    text = text_world(texts, stages, config, world, autocast)
    return Engine(model, visual, text, pieces, stages, texts, encoder)


def lay_out_parts(config: RunConfig, world: World) -> tuple[VideoLM, list[TextStage], Trunk, tuple[Stage, ...]]:
    """What this rank holds, on the meta device, cut and sharded; and all stages of the pipeline."""
    layout = config.layout
    stages = cut(config.model, config.data.text_tokens, layout.pipeline * layout.virtual_stages)
    own = [number for number in range(len(stages)) if rank_of(number, layout) == world.place.pipeline]
    model = lay_out_model(config)
    texts, trunk = [TextStage(model, stages, number) for number in own], Trunk(model)
    keep_only(model, [*texts, trunk])
    split(texts, trunk, config, world)
    return model, texts, trunk, stages


def masters_dtype(config: RunConfig) -> torch.dtype:
    """The type of the weights that the optimizer steps."""
    return torch.float64 if config.train.precision == "fp64" else torch.float32


def lay_out_model(config: RunConfig) -> VideoLM:
    """The whole model on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return VideoLM(config.model).to(masters_dtype(config))


def keep_only(model: VideoLM, held: list[nn.Module]) -> None:
    """Take out of `model` every module that no part in `held` has, so that it keeps the names of what it holds."""
    kept = {id(module) for part in held for module in part.modules()}
    removed: list[str] = []
    for name, module in list(model.named_modules()):
        if not name or name.startswith(("vision", *removed)) or {id(inner) for inner in module.modules()} & kept:
            continue
        parent_name, _, own = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        if isinstance(parent, nn.ModuleDict):
            del parent[own]
        else:
            parent.register_module(own, None)
        removed.append(f"{name}.")


def split(texts: list[TextStage], trunk: Trunk, config: RunConfig, world: World) -> None:
    """Cut the decoder over the tensor axis, then shard everything: ZeRO-1 over data ranks, the trunk over all ranks."""
    ways = recompute_ways(config)
    for stage in texts:
        stage.recompute = ways
        stage.flex = config.train.flex_attention
        if config.train.fp8:
            use_fp8(stage)
        if config.train.compile:
            stage.compile_blocks()
    if world.groups is None:
        return
    mesh, precision = world.groups.mesh, config.train.precision
    replicated = config.layout.data_parallel == "replicate"
    data = mesh["replicate", "shard"] if replicated else mesh["shard"]
    for stage in texts:
        if world.layout.tensor > 1:
            cut_tensors(stage, mesh["tensor"])
        shard_modules([*stage.blocks.values(), stage], data, precision)
    shard_modules([trunk], world.groups.everyone, precision)


def fill(model: VideoLM, parts: list[nn.Module], config: RunConfig, world: World, value: Value) -> list[str]:
    """Give every parameter that this rank holds memory and its value; returns their names in the whole model."""
    names = {id(parameter): name for name, parameter in model.named_parameters() if not name.startswith("vision.")}
    for part in parts:
        named = {own: names[id(parameter)] for own, parameter in part.named_parameters()}
        materialise(part, named, world.device, value)
    scale = value("logit_scale", model.logit_scale.shape, box_of(model.logit_scale)).to(
        world.device, masters_dtype(config)
    )
    model.logit_scale = nn.Parameter(scale)
    return list(names.values())


def default_value(config: RunConfig) -> Value:
    """Starting values by name, or what the checkpoint `model.decoder_from` has under that name."""

    def start(name: str, shape: torch.Size, box: Box) -> Tensor:
        return starting_value(name, shape, config.model, config.train.seed)[box]

    if not config.model.decoder_from:
        return start
    weights = LanguageWeights(config)
    return lambda name, shape, box: weights.part(name, box) if name in weights else start(name, shape, box)


def text_world(
    texts: list[TextStage], stages: tuple[Stage, ...], config: RunConfig, world: World, autocast: bool
) -> TextWorld:
    """The decoder as the step sees it."""
    layout = config.layout
    if layout.pipeline == 1:
        return WholeDecoder(texts[0], layout.microbatch_pairs, world, autocast)
    last_lower = config.model.decoder.lower_layers - 1
    holder = next(number for number, stage in enumerate(stages) if last_lower in stage.layers)
    pipeline = Pipeline(texts, len(stages), config, world)
    return PipedDecoder(pipeline, rank_of(holder, layout), config.model.embedding, masters_dtype(config))
