"""What a result is of: the model, the config, the data, the command and the versions, as JSON values beside figures."""

import dataclasses
import hashlib
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers

from xgenvideo import __version__
from xgenvideo.config import RunConfig
from xgenvideo.data.dataset import sha256_of


def provenance(config: RunConfig, weights: str, data: dict[str, Any], command: Sequence[str]) -> dict[str, Any]:
    """Of one evaluation. `weights`: SHA-256 of the model's tensors; `data`: hashes of what was read."""
    return {
        "weights_sha256": weights,
        "data": data,
        "command": shlex.join(command),
        "config": dataclasses.asdict(config),
        "versions": {
            "xgenvideo": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
        },
    }


def command_line() -> list[str]:
    """As it was typed, the program by its name alone."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def files_sha256(path: Path) -> dict[str, str]:
    """SHA-256 of an annotation file, or of each file of a folder of them, by name."""
    files = sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]
    return {one.name: sha256_of(one) for one in files}


def together(hashes: dict[str, str]) -> str:
    """One SHA-256 over names and hashes, in the order of the names."""
    return hashlib.sha256("".join(f"{name}\n{hashes[name]}\n" for name in sorted(hashes)).encode()).hexdigest()
