"""Rows of published runs (facts/published_runs.csv, or a file for `xgv plan --rows`) as runs that can be predicted.

A column that is missing, empty or "?" gets a default, and the default is said with the row. A row without its model,
batch or GPUs cannot be predicted and says why.
"""

import csv
import dataclasses
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from xgenvideo.errors import DataError
from xgenvideo.plan.hardware import A100, A100_40, B200, H100, H100_96, H200, Cluster, Gpu, usual_cluster
from xgenvideo.plan.layer import LayerShape, Software
from xgenvideo.plan.textrun import TextRun

REQUIRED = ("layers", "hidden", "heads", "seq", "gbs", "gpus")
BITS_PER_BYTE = 8
LARGEST_CHUNKS = 12

MEGATRON_2021 = Software(
    "fused_softmax", kernels=25, passes=11, sequence_parallel=False, fused_accumulation=False, zero=0
)
MEGATRON_CORE = Software("cudnn", kernels=14, hides_tensor=True, overlaps_data=True, overlaps_messages=True)
FSDP_EAGER = Software("flash", kernels=35, zero=3)
FSDP_COMPILED = Software("flash", kernels=14, zero=3)


@dataclass(frozen=True)
class Published:
    """One row. `run` is None where `reason` says why it cannot be predicted. Measured figures are None if not given."""

    name: str
    run: TextRun | None
    reason: str
    defaults: tuple[str, ...]
    measured_seconds: float | None
    measured_gigabytes: float | None

    @property
    def family(self) -> str:
        """What runs came from one source: the name up to its first underscore."""
        return self.name.split("_")[0]


def published_runs() -> list[Published]:
    """The runs shipped with the package, from facts/published_runs.csv, each with its source there."""
    text = files("xgenvideo.plan").joinpath("facts", "published_runs.csv").read_text(encoding="utf-8")
    return list(read_rows(csv.DictReader(io.StringIO(text))))


def read_file(path: Path) -> list[Published]:
    """The rows of a CSV file with the columns of published_runs.csv. Raises DataError where it cannot be read."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(read_rows(csv.DictReader(file)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from error
    if not rows:
        raise DataError(f"{path}: holds no row; it needs a header and the columns {', '.join(REQUIRED)}")
    return rows


def read_rows(rows: Iterable[dict[str, str]]) -> Iterable[Published]:
    """Every row as Published, in order, none dropped."""
    for number, row in enumerate(rows, start=1):
        clean = {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)}
        yield _Reader(clean, clean.get("run_id") or f"row {number}").published()


class _Reader:
    """Reads one row and remembers what it had to assume."""

    def __init__(self, row: dict[str, str], name: str) -> None:
        self.row, self.name = row, name
        self.defaults: list[str] = []

    def published(self) -> Published:
        measured = (_number(self.row.get("iter_s", "")), _number(self.row.get("mem_gb_gpu", "")))
        try:
            run: TextRun | None = self.run()
            reason = ""
        except (KeyError, ValueError, ZeroDivisionError) as error:
            run, reason = None, str(error.args[0] if error.args else error)
        return Published(self.name, run, reason, tuple(self.defaults), *measured)

    def run(self) -> TextRun:
        """The row as a run. Raises ValueError saying what is missing or contradicts itself."""
        missing = [column for column in REQUIRED if _number(self.row.get(column, "")) is None]
        if missing:
            raise ValueError(f"no number in {', '.join(missing)}")
        tensor, pipeline, context = self.integer("tp", 1), self.integer("pp", 1), self.integer("cp", 1)
        gpus = self.integer("gpus", 1)
        replica = tensor * pipeline * context
        if gpus % replica:
            raise ValueError(f"tp {tensor} x pp {pipeline} x cp {context} does not divide gpus {gpus}")
        data = self.integer("dp", gpus // replica)
        if replica * data != gpus:
            self.defaults.append(f"dp: {gpus // replica}, as the GPUs say (the row has {data})")
            data = gpus // replica
        cluster, software = self.cluster(), self.software()
        batch = self.integer("gbs", 1)
        sequences = self.sequences(batch, data, tensor, pipeline)
        layers = self.integer("layers", 1)
        return TextRun(
            name=self.name,
            cluster=cluster,
            software=software,
            shape=self.shape(),
            layers=layers,
            vocab=self.integer("vocab", 51_200),
            sequence=self.integer("seq", 2048),
            batch=batch,
            sequences=sequences,
            tensor=tensor,
            pipeline=pipeline,
            virtual=self.virtual(layers, pipeline),
            context=context,
            data=data,
            fp8="fp8" in self.text("precision", "bf16").lower(),
            recompute=self.recompute(),
        )

    def text(self, column: str, default: str) -> str:
        """A column's text, or the default, which is then said."""
        value = self.row.get(column, "")
        if value in ("", "?"):
            self.defaults.append(f"{column}: {default}")
            return default
        return value

    def integer(self, column: str, default: int) -> int:
        """A column as a whole number of at least 1, or the default, which is then said."""
        value = _number(self.row.get(column, ""))
        if value is None:
            self.defaults.append(f"{column}: {default}")
            return default
        if value < 1 or value != int(value):
            raise ValueError(f"{column} is {self.row[column]}, not a whole number of at least 1")
        return int(value)

    def shape(self) -> LayerShape:
        width, heads = self.integer("hidden", 1), self.integer("heads", 1)
        kv_heads = self.integer("kv_heads", heads)
        gated = self.text("gated_mlp", "0").lower() in ("1", "1.0", "true", "yes")
        mlp = self.integer("ffn", 4 * width)
        if width % heads:
            raise ValueError(f"hidden {width} is no multiple of heads {heads}")
        return LayerShape(width, heads, width, width // heads * kv_heads, mlp, gated)

    def cluster(self) -> Cluster:
        gpu = self.gpu()
        usual = usual_cluster(gpu)
        net = self.row.get("inter_net", "")
        node = _node_bytes(net)
        if node is None:
            node = usual.node_bytes_per_second
            self.defaults.append(f"inter_net: {node * BITS_PER_BYTE / 1e9:.0f} Gb/s a node")
        # The one cluster here with Omni-Path, Jean Zay, has two boards of four GPUs a node (the bigscience README:
        # "NVLink 4 inter-gpu connects, 4 OmniPath links").
        omni = "omni" in net.lower()
        return Cluster(gpu, node, nvlink_domain=4 if omni else 8, omni_path=omni)

    def gpu(self) -> Gpu:
        name = self.text("gpu", "H100-SXM-80GB").upper()
        forms = (("A100", "40GB", A100_40), ("A100", "", A100), ("H100", "96GB", H100_96), ("H100", "", H100))
        for chip, form, gpu in (*forms, ("H200", "", H200), ("B200", "", B200)):
            if chip in name and form in name and "GB200" not in name:
                return gpu
        raise ValueError(f"no data of the GPU {name}")

    def software(self) -> Software:
        """The framework's habits, with what the row itself says of attention, sharding and compilation."""
        name, notes = self.text("framework", "Megatron-Core").lower(), self.name.lower()
        sharded = _number(re.sub(r"\D", "", self.row.get("zero", "")))
        if "deepspeed" in name or "megatron-lm" in name:
            software = MEGATRON_2021
            if "2022" in name or "2023" in name or "2024" in name:
                software = _with(software, fused_accumulation=True)
            if "sp" in re.split(r"\W+", self.row.get("recompute", "").lower()):
                software = _with(software, sequence_parallel=True)
        elif any(word in name for word in ("foundry", "composer", "mosaic")):
            software = FSDP_EAGER
        elif any(word in name for word in ("titan", "maxtext", "automodel", "fsdp")):
            software = _with(FSDP_COMPILED, attention="cudnn") if "titan" not in name else FSDP_COMPILED
            if "titan" in name and "compile" not in notes and self.row.get("precision") != "fp8":
                software = _with(software, kernels=35, eager=True)
        else:
            software = MEGATRON_CORE
        software = _with(software, zero=software.zero if sharded is None else int(sharded))
        return self._attention(software)

    def _attention(self, software: Software) -> Software:
        told = self.row.get("attention", "").lower()
        flash = "cudnn" if software.hides_tensor else "flash"
        kinds = (("softmax|unfused", "fused_softmax"), (r"\bte\b|cudnn|transformer ?engine", "cudnn"), ("flash", flash))
        for words, kind in kinds:
            if re.search(words, told):
                return _with(software, attention=kind)
        if told in ("", "?"):
            self.defaults.append(f"attention: {software.attention}")
        return software

    def sequences(self, batch: int, data: int, tensor: int, pipeline: int) -> int:
        """The microbatch. torchtitan's rows give a rank's batch, which it cuts into as many as it has stages."""
        each = max(1, batch // data)
        if "titan" in self.row.get("framework", "").lower() and pipeline > 1:
            self.defaults.append("mbs: local batch / pp (torchtitan's default number of microbatches)")
            return max(1, each // pipeline)
        return self.integer("mbs", 1 if pipeline > 1 else min(each, tensor))

    def virtual(self, layers: int, pipeline: int) -> int:
        """Chunks a rank. Not given: as many as leave whole layers, up to 12; torchtitan's interleaving has two."""
        if _number(self.row.get("vpp", "")) is not None or pipeline == 1:
            return self.integer("vpp", 1)
        if "1f1b" in self.name.lower():
            return self.integer("vpp", 1)
        if "titan" in self.row.get("framework", "").lower():
            return self.integer("vpp", 2)
        blocks = layers if layers % pipeline == 0 else layers + 2
        fitting = [count for count in range(1, LARGEST_CHUNKS + 1) if blocks % (pipeline * count) == 0]
        old = "softmax" in self.row.get("attention", "")
        return self.integer("vpp", 1 if old or not fitting else fitting[-1])

    def recompute(self) -> str:
        """full, attention, half or none."""
        told, framework = self.text("recompute", "none").lower(), self.row.get("framework", "").lower()
        if told.startswith("full"):
            return "full"
        if told.startswith("selective (attn"):
            return "attention"
        if "titan" in framework and told.startswith("selective"):
            return "half"  # torchtitan's selective recomputation keeps every other product
        if "maxtext" in framework:
            self.defaults.append("recompute: half (without any, its activations exceed the memory)")
            return "half"
        return "none"


def _with(software: Software, **changes: object) -> Software:
    return dataclasses.replace(software, **changes)  # type: ignore[arg-type]


def _number(text: str) -> float | None:
    """A number, also with a question mark after it, or None."""
    try:
        return float(text.strip().rstrip("?"))
    except ValueError:
        return None


def _node_bytes(text: str) -> float | None:
    """Bytes a second of a node's adapters from text as "8x400Gb/s IB/node", "400Gb/s RoCE per GPU", "3200Gb/s/node"."""
    each = re.search(r"(\d+)\s*x\s*(\d+)\s*Gb", text)
    if each:
        return int(each[1]) * int(each[2]) * 1e9 / BITS_PER_BYTE
    one = re.search(r"(\d+)\s*Gb/s", text)
    if one is None:
        return None
    return int(one[1]) * 1e9 / BITS_PER_BYTE * (8 if re.search(r"per gpu|/gpu", text.lower()) else 1)
