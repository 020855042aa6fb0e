"""What a GPU's data sheet promises. Peaks are dense bf16, without sparsity: half of what some sheets print large.

Memory is what the driver reports as total (nvidia-smi), which is what a plan has to fit into.
"""

from dataclasses import dataclass

from xgenvideo.errors import ConfigError


@dataclass(frozen=True)
class Gpu:
    """One GPU, SXM form. `nvlink_bytes_per_second` is the sum of both directions, as the data sheets give it."""

    name: str
    title: str
    bf16_flops_per_second: float
    memory_bytes: float
    memory_bytes_per_second: float
    nvlink_bytes_per_second: float
    watts: float


MEBIBYTE = 2.0**20

# NVIDIA A100 80GB data sheet (June 2021): 312 TFLOPS BF16, 2,039 GB/s, NVLink 600 GB/s, 400 W.
A100 = Gpu("a100", "NVIDIA A100 SXM 80GB", 312e12, 81_920 * MEBIBYTE, 2.039e12, 600e9, 400.0)
# NVIDIA H100 data sheet: 1,979 TFLOPS BF16 with sparsity, so 989.4 dense; 3.35 TB/s; NVLink 900 GB/s; 700 W.
H100 = Gpu("h100", "NVIDIA H100 SXM 80GB", 989.4e12, 81_559 * MEBIBYTE, 3.35e12, 900e9, 700.0)
# NVIDIA H200 data sheet: the H100's compute with 141 GB HBM3e at 4.8 TB/s; NVLink 900 GB/s; 700 W.
H200 = Gpu("h200", "NVIDIA H200 SXM 141GB", 989.4e12, 143_771 * MEBIBYTE, 4.8e12, 900e9, 700.0)
# NVIDIA DGX B200 data sheet, an eighth of: 18 PFLOPS dense BF16, 1,440 GB, 64 TB/s, NVLink 14.4 TB/s; 1,000 W each.
B200 = Gpu("b200", "NVIDIA B200 SXM 180GB", 2250e12, 183_359 * MEBIBYTE, 8e12, 1800e9, 1000.0)

GPUS = (A100, H100, H200, B200)


def find_gpu(name: str) -> Gpu:
    """The GPU called `name`, upper or lower case. Raises ConfigError listing the names."""
    for gpu in GPUS:
        if gpu.name == name.lower():
            return gpu
    raise ConfigError("--gpu", name, "no data of such a GPU", [gpu.name for gpu in GPUS])
