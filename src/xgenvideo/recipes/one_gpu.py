"""One GPU of 80 GB or more: a 1.2 B model (0.9 B trainable) with ViT-L/14, to try real data before a cluster."""

from xgenvideo.config import (
    DataConfig,
    DecoderConfig,
    LayoutConfig,
    ModelConfig,
    ResamplerConfig,
    RunConfig,
    TrainConfig,
    VisionConfig,
)


def one_gpu() -> RunConfig:
    """A single-GPU run on curated shards.

    Command:  xgv train one_gpu data.shards=FOLDER model.vision.weights=FOLDER --out runs/one_gpu
    Cost:     `xgv plan one_gpu` works it out; not yet measured on a GPU.
    Expected: not yet measured.
    """
    return RunConfig(
        name="one_gpu",
        model=ModelConfig(
            vision=VisionConfig(
                width=1024, depth=24, heads=16, mlp=4096, patch=14, image_size=224, weights="weights/vit_l_14"
            ),
            resampler=ResamplerConfig(queries=256, width=1024, depth=4, heads=16),
            decoder=DecoderConfig(
                width=1536, depth=24, heads=12, kv_heads=4, head_size=128, mlp=4608, vocab=32_768, cross_blocks=4
            ),
            embedding=768,
        ),
        layout=LayoutConfig(microbatch_pairs=8),  # 34 GB by the planner
        data=DataConfig(frames=64, fps=2.0, text_tokens=512),
        train=TrainConfig(steps=20_000, global_batch_pairs=64, precision="bf16", save_every_steps=1000),
    )
