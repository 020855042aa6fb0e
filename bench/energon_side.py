"""Megatron Energon's part of bench/data.py: our shards under its metadata, its task encoder around our functions."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import megatron.energon as energon

Stored = Callable[[dict[str, Any]], Any]
Padded = Callable[[Sequence[Any]], Any]


@dataclass
class Clip(energon.Sample):  # type: ignore[misc]
    """A sample as it is stored."""

    stored: Any


def prepared(shards: Path, folder: Path) -> Path:
    """A folder with links to the shards and the metadata that Energon's own tool writes."""
    if folder.exists():
        return folder
    folder.mkdir()
    for shard in shards.glob("*.tar"):
        os.link(shard, folder / shard.name)
    command = [str(Path(sys.executable).with_name("energon")), "prepare", str(folder), "--non-interactive"]
    command += ["--split-parts", "train:train-.*[.]tar", "--sample-type", "CrudeWebdataset", "--num-workers", "1"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def encoder(stored: Stored, padded: Padded) -> Any:
    """A task encoder that makes a batch of pictures of what is stored."""

    @energon.stateless  # type: ignore[untyped-decorator]
    def cook(sample: dict[str, Any]) -> Clip:
        return Clip(**energon.basic_sample_keys(sample), stored=stored(sample))

    class Encoder(energon.DefaultTaskEncoder):  # type: ignore[misc]
        cookers = [energon.Cooker(cook)]  # noqa: RUF012 (Energon's way)
        decoder = None

        def batch(self, samples: list[Clip]) -> Any:
            return padded([sample.stored for sample in samples])

        def encode_batch(self, batch: Any) -> Any:
            return batch

    return Encoder()
