"""What data sheets promise of GPUs, and how GPUs are wired. Peaks are dense, without sparsity.

Memory is what the driver reports as total (nvidia-smi), which is what a plan has to fit into. What kernels and links
really reach of these figures is in rates.py.
"""

from dataclasses import dataclass

from xgenvideo.errors import ConfigError


@dataclass(frozen=True)
class Gpu:
    """One GPU, SXM form. `nvlink_bytes_per_second` is the sum of both directions, as the data sheets give it.

    `power_share` is the power limit over the SXM form's own: a card held to less runs at a lower clock.
    """

    name: str
    title: str
    bf16_flops_per_second: float
    memory_bytes: float
    memory_bytes_per_second: float
    nvlink_bytes_per_second: float
    watts: float
    multiprocessors: int = 132
    hopper: bool = True
    power_share: float = 1.0

    @property
    def fp8_flops_per_second(self) -> float:
        """Dense fp8: twice bf16 from Hopper on; an Ampere has none and computes in bf16."""
        return self.bf16_flops_per_second * (2 if self.hopper else 1)


MEBIBYTE = 2.0**20

# NVIDIA A100 80GB data sheet (June 2021): 312 TFLOPS BF16, 2,039 GB/s, NVLink 600 GB/s, 400 W, 108 SMs.
A100 = Gpu("a100", "NVIDIA A100 SXM 80GB", 312e12, 81_920 * MEBIBYTE, 2.039e12, 600e9, 400.0, 108, hopper=False)
# The same sheet's 40 GB form: 1,555 GB/s.
A100_40 = Gpu("a100-40", "NVIDIA A100 SXM 40GB", 312e12, 40_960 * MEBIBYTE, 1.555e12, 600e9, 400.0, 108, hopper=False)
# NVIDIA H100 data sheet: 1,979 TFLOPS BF16 with sparsity, so 989.4 dense; 3.35 TB/s; NVLink 900 GB/s; 700 W; 132 SMs.
H100 = Gpu("h100", "NVIDIA H100 SXM 80GB", 989.4e12, 81_559 * MEBIBYTE, 3.35e12, 900e9, 700.0)
# The form with 96 GB HBM2e and a 500 W limit, in torchtitan's published runs.
H100_96 = Gpu(
    "h100-96", "NVIDIA H100 96GB HBM2e 500W", 989.4e12, 97_871 * MEBIBYTE, 2.0e12, 900e9, 500.0, 132, True, 5 / 7
)
# NVIDIA H200 data sheet: the H100's compute with 141 GB HBM3e at 4.8 TB/s; NVLink 900 GB/s; 700 W.
H200 = Gpu("h200", "NVIDIA H200 SXM 141GB", 989.4e12, 143_771 * MEBIBYTE, 4.8e12, 900e9, 700.0)
# NVIDIA DGX B200 data sheet, an eighth of: 18 PFLOPS dense BF16, 1,440 GB, 64 TB/s, NVLink 14.4 TB/s; 1,000 W each.
B200 = Gpu("b200", "NVIDIA B200 SXM 180GB", 2250e12, 183_359 * MEBIBYTE, 8e12, 1800e9, 1000.0, 148)

GPUS = (A100, H100, H200, B200)


def find_gpu(name: str) -> Gpu:
    """The GPU called `name`, upper or lower case. Raises ConfigError listing the names."""
    for gpu in GPUS:
        if gpu.name == name.lower():
            return gpu
    raise ConfigError("--gpu", name, "no data of such a GPU", [gpu.name for gpu in GPUS])


@dataclass(frozen=True)
class Cluster:
    """GPUs and their wires: `node_bytes_per_second` is one direction of all a node's network adapters together.

    `nvlink_domain`: GPUs that reach each other over NVLink; less than a node where a node is made of quad boards.
    `omni_path`: adapters whose messages the processors carry, without direct access to GPU memory.
    """

    gpu: Gpu
    node_bytes_per_second: float
    gpus_per_node: int = 8
    nvlink_domain: int = 8
    omni_path: bool = False

    @property
    def nvlink_one_way(self) -> float:
        """Bytes a second that one GPU sends over NVLink."""
        return self.gpu.nvlink_bytes_per_second / 2


def usual_cluster(gpu: Gpu) -> Cluster:
    """Nodes of eight with one adapter a GPU: 200 Gb/s beside an A100, 400 Gb/s from Hopper on (Quantum-2)."""
    return Cluster(gpu, 8 * (400e9 if gpu.hopper else 200e9) / 8)
