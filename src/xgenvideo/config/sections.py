"""The sections of a run's config: what each field means. The rules are in check.py."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

EFFICIENTNET = "efficientnet-lite0"


@dataclass(frozen=True)
class VisionConfig:
    """The frozen encoder, a CLIP-style pre-norm ViT. `weights`: "random:SEED", "builtin:tiny" or a folder on disk.

    "efficientnet-lite0" takes EfficientNet-Lite0's real features instead (extra `curate`): width 1280, patch 32; depth,
    heads and mlp then mean nothing.
    """

    width: int
    depth: int
    heads: int
    mlp: int
    patch: int
    image_size: int
    weights: str = "random:0"

    @property
    def convolutional(self) -> bool:
        """Whether it is EfficientNet-Lite0 and no ViT."""
        return self.weights == EFFICIENTNET

    @property
    def patches(self) -> int:
        """Patch features a frame."""
        return (self.image_size // self.patch) ** 2


@dataclass(frozen=True)
class ResamplerConfig:
    """Spatio-temporal queries: frames' patch features in, `queries` latents of `width` out. `time`: real or slot."""

    queries: int
    width: int
    depth: int
    heads: int
    frame_slots: int = 64
    time: str = "real"


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's slower rotary frequencies for texts longer than `original_positions`; factor 1 changes nothing."""

    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192


@dataclass(frozen=True)
class DecoderConfig:
    """Causal decoder; `cross_blocks` gated cross-attention blocks are in its upper half: spread evenly from its first
    layer on ("even" `cross_placement`), or before its "last" layers.

    `gate_start`: where the gates' scalars start. 0: closed; 20: their tanh is 1 and has no gradient, so no gates.
    `attention_biases` (Qwen2: of query, key and value), `query_key_norm` (Qwen3: RMSNorm of each head's query and key)
    and `rope_scaling` (Llama 3.1) are of its self-attention, for `model.decoder_from`.
    """

    width: int
    depth: int
    heads: int
    kv_heads: int
    head_size: int
    mlp: int
    vocab: int
    cross_blocks: int
    cross_placement: str = "even"
    gate_start: float = 0.0
    rope_theta: float = 500_000.0
    norm_eps: float = 1e-5
    attention_biases: bool = False
    query_key_norm: bool = False
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)

    @property
    def lower_layers(self) -> int:
        """Layers of the unimodal lower half; the text embedding is read after them."""
        return self.depth // 2

    @property
    def cross_before(self) -> tuple[int, ...]:
        """The self-attention layers that have a gated cross-attention block before them."""
        upper = self.depth - self.lower_layers
        if self.cross_placement == "last":
            return tuple(range(self.depth - self.cross_blocks, self.depth))
        return tuple(self.lower_layers + i * upper // self.cross_blocks for i in range(self.cross_blocks))


@dataclass(frozen=True)
class ModelConfig:
    """All parts of the model. `embedding`: width of the shared video-text embedding.

    `decoder_from`: a folder with a Llama, Mistral, Qwen2 or Qwen3 checkpoint in safetensors that the decoder starts
    from; cross-attention, resampler and text embedding keep their starting values. "" for none.
    """

    vision: VisionConfig
    resampler: ResamplerConfig
    decoder: DecoderConfig
    embedding: int
    decoder_from: str = ""


@dataclass(frozen=True)
class ObjectiveConfig:
    """Next-token loss plus `contrastive_weight` times the video-text contrastive loss."""

    contrastive_weight: float = 1.0
    contrastive: str = "infonce"
    contrastive_scope: str = "global"


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW; lr warms up over `warmup_fraction` of the steps, then falls as a cosine to `lr * min_lr_fraction`.

    `gate_lr_scale` multiplies the lr of the gates: from zero, they open slowly at a small lr.
    """

    lr: float = 1.5e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    warmup_fraction: float = 0.02
    min_lr_fraction: float = 0.1
    clip_norm: float = 1.0
    gate_lr_scale: float = 1.0


@dataclass(frozen=True)
class DataConfig:
    """What a training sample holds: at most `frames` frames at `fps`, `text_tokens` tokens of packed documents.

    `group_by_source` keeps clips of one source next to each other in the order, as hard negatives of one batch.
    `workers`: processes of each rank that make batches ahead (0: a thread); one that gives no batch for
    `worker_timeout_seconds` is replaced. `bad_share`: a run stops when more of its samples cannot be read.
    `cache_features`: run the frozen encoder once over the dataset and keep its features beside it, as `feature_type`:
    "bf16", or "int8" for half the bytes.
    `tokenizer`: a published model's folder or tokenizer.json to read texts with; "dataset" or empty: the dataset's own.
    `bucket_batches`: within so many batches, samples are sorted by length, so that less padding is computed; 0: none.
    `stitch`: clips of one source that follow each other are read as one sample of at most `frames` frames.
    `blend`: further datasets and the share of all samples that each gives, PATH=0.3,PATH=0.1; `shards` gives the rest.
    """

    shards: str = ""
    blend: str = ""
    tokenizer: str = ""
    frames: int = 64
    fps: float = 2.0
    text_tokens: int = 512
    cache_features: bool = False
    feature_type: str = "bf16"
    group_by_source: bool = False
    bucket_batches: int = 0
    stitch: bool = False
    pairs_expected: int = 0
    workers: int = 0
    worker_timeout_seconds: float = 120.0
    bad_share: float = 0.01

    @property
    def published_tokenizer(self) -> str:
        """The path of a published model's tokenizer, or nothing."""
        return "" if self.tokenizer == "dataset" else self.tokenizer


@dataclass(frozen=True)
class LayoutConfig:
    """How ranks are used: tensor x pipeline x data. `microbatch_pairs`: pairs a microbatch of one replica.

    `data_parallel`: "zero1" shards masters and optimizer over the data axis, "replicate" keeps them whole on each rank.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    virtual_stages: int = 1
    microbatch_pairs: int = 1
    schedule: str = "1f1b"
    data_parallel: str = "zero1"

    @property
    def world(self) -> int:
        """Ranks in all."""
        return self.tensor * self.pipeline * self.data


@dataclass(frozen=True)
class TrainConfig:
    """The loop. `save_every_steps` counts optimizer steps; `precision` is that of matrix work, masters are fp32.

    "fp64" computes everything in double precision: for comparing layouts, not for training. `recompute`: what of a
    decoder block is made again in the backward instead of kept: "none", "selective" (all but matrix products and
    attention) or "full"; `recompute_budget_gib` chooses it block by block instead, so that what a rank keeps of its
    decoder blocks is at most so many GiB by the planner's formula (0: no budget). `compile`: torch.compile for each
    decoder block. `flex_attention`: FlexAttention for packed texts, on a GPU, instead of a dense mask.
    `fp8`: matrix products of decoder blocks in 8-bit floating point, on GPUs that can. A job whose ranks
    do not meet and end their first step within `startup_timeout_seconds`, or any later one within
    `step_timeout_seconds`, has hung and ends. Every `eval_every_steps` steps and at the end (0: never) the loss of the
    held-out split is measured, over its first `eval_batches` global batches (0: all whole ones).
    `wandb_project`: the W&B project that logs the run too, beside metrics.jsonl and TensorBoard; "" for none.
    """

    steps: int
    global_batch_pairs: int
    precision: str = "bf16"
    seed: int = 0
    save_every_steps: int = 1000
    keep_checkpoints: int = 2
    log_every_steps: int = 10
    eval_every_steps: int = 0
    eval_batches: int = 0
    threads: int = 0
    stop_after_steps: int = 0
    recompute: str = "none"
    recompute_budget_gib: float = 0.0
    compile: bool = False
    flex_attention: bool = False
    fp8: bool = False
    startup_timeout_seconds: float = 1800.0
    step_timeout_seconds: float = 600.0
    wandb_project: str = ""


@dataclass(frozen=True)
class SafetyConfig:
    """What a run does against its failures; 0 switches a thing off.

    `save_every_minutes`: ephemeral checkpoints between those of train.save_every_steps. `failed_saves_allowed`: so many
    saves in a row may fail before the run ends. `copy_to`: a folder or URL (fsspec) for copies of checkpoints.
    `wall_clock_minutes`: after so long the run saves and ends.
    `spike_factor`: a loss over so many times the median of the last `spike_window` steps goes back to the newest
    checkpoint and passes over the batches since, at most `spike_rewinds` times in each start of the run, so that one
    that is started again with another learning rate has them all. `check_weights_every_steps`: compare
    what ranks hold alike. `slow_rank_factor`: name the rank whose own work takes so many times the median.
    """

    save_every_minutes: float = 20.0
    failed_saves_allowed: int = 0
    copy_to: str = ""
    wall_clock_minutes: float = 0.0
    spike_factor: float = 0.0
    spike_window: int = 50
    spike_rewinds: int = 3
    check_weights_every_steps: int = 1000
    slow_rank_factor: float = 1.5


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run. Saved as JSON beside every checkpoint."""

    name: str
    model: ModelConfig
    train: TrainConfig
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)

    def to_json(self) -> str:
        """The config as JSON text, keys in the order of the fields."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def save(self, path: Path) -> None:
        """Write the config as JSON."""
        path.write_text(self.to_json(), encoding="utf-8")
