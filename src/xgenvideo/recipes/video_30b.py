"""X-Gen-Video-30B: 30.2 B parameters on 512 H100, tensor 4 x pipeline 8 x ZeRO-1 over 16 replicas."""

from xgenvideo.config import (
    DataConfig,
    DecoderConfig,
    LayoutConfig,
    ModelConfig,
    OptimizerConfig,
    ResamplerConfig,
    RunConfig,
    SafetyConfig,
    TrainConfig,
    VisionConfig,
)


def video_30b() -> RunConfig:
    """The full run: 30,202,772,625 parameters, 28,359,995,281 of them trainable.

    Command:  sbatch deploy/slurm.sh, or `xgv plan video_30b` to see what it costs.
    Cost:     `xgv plan video_30b` works it out; the run has not been made with this code.
    Expected: the design target is one pass over 150 M pairs, global batch 2,048, 64 frames a pair at 2 FPS.
    """
    return RunConfig(
        name="video_30b",
        model=ModelConfig(
            vision=VisionConfig(
                width=1664, depth=48, heads=16, mlp=8192, patch=14, image_size=224, weights="weights/vit_bigg_14"
            ),
            resampler=ResamplerConfig(queries=256, width=1664, depth=6, heads=16, frame_slots=64),
            decoder=DecoderConfig(
                width=6144,
                depth=48,
                heads=48,
                kv_heads=8,
                head_size=128,
                mlp=20992,
                vocab=131_072,
                cross_blocks=8,
            ),
            embedding=1024,
        ),
        layout=LayoutConfig(tensor=4, pipeline=8, data=16, microbatch_pairs=1, virtual_stages=1),
        data=DataConfig(frames=64, fps=2.0, text_tokens=512, pairs_expected=150_000_000),
        optimizer=OptimizerConfig(
            lr=1.5e-4, beta1=0.9, beta2=0.95, weight_decay=0.1, warmup_fraction=0.02, min_lr_fraction=0.1
        ),
        train=TrainConfig(
            steps=73_242, global_batch_pairs=2048, precision="bf16", save_every_steps=1000, keep_checkpoints=3
        ),
        safety=SafetyConfig(failed_saves_allowed=2, spike_factor=1.5),
    )
