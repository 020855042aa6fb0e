"""The laptop recipe: the same architecture, small enough to train on 2 cores in minutes."""

from xgenvideo.config import (
    DataConfig,
    DecoderConfig,
    LayoutConfig,
    ModelConfig,
    OptimizerConfig,
    ResamplerConfig,
    RunConfig,
    TrainConfig,
    VisionConfig,
)


def tiny() -> RunConfig:
    """Train on generated clips on a laptop.

    Command:  xgv demo (the whole journey), or xgv train tiny data.shards=FOLDER --out runs/tiny
    Cost:     about 6 minutes of training on 2 cores (1,050 steps, as the demonstration takes).
    Expected: see runs/demo/summary.json of `xgv demo`.
    """
    return RunConfig(
        name="tiny",
        model=ModelConfig(
            vision=VisionConfig(width=128, depth=4, heads=4, mlp=384, patch=16, image_size=64, weights="builtin:tiny"),
            resampler=ResamplerConfig(queries=32, width=128, depth=2, heads=4),
            decoder=DecoderConfig(
                width=128, depth=4, heads=4, kv_heads=2, head_size=32, mlp=352, vocab=1024, cross_blocks=2
            ),
            embedding=64,
        ),
        layout=LayoutConfig(microbatch_pairs=32),
        data=DataConfig(
            frames=64, fps=2.0, text_tokens=64, cache_features=True, group_by_source=True, bucket_batches=8
        ),
        optimizer=OptimizerConfig(lr=2e-3, gate_lr_scale=10.0),
        train=TrainConfig(steps=600, global_batch_pairs=32, precision="fp32", save_every_steps=200, log_every_steps=10),
    )
