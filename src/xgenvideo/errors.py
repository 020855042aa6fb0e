"""Every exception a user can meet, as one tree. A message names the setting or file, its value, the rule, the cure.

XGenVideoError
├── ConfigError        a recipe, an override or a flag is wrong
├── MissingExtra       a package of an optional extra is not installed
├── DataError          an input, a shard or a manifest is wrong
│   └── MediaError     one media file cannot be used; carries a reason code
├── CheckpointError    a checkpoint is corrupt, foreign or cannot be written
├── TrainError         training cannot go on (non-finite loss, a run directory in use)
└── ReleaseError       an exported release is wrong or does not fit the input
"""

from collections.abc import Iterable
from difflib import get_close_matches


class XGenVideoError(Exception):
    """Base of all our errors; the command line prints its message alone and exits with `exit_code`."""

    exit_code = 1


class ConfigError(XGenVideoError):
    """A setting has a value that its rule refuses."""

    exit_code = 2

    def __init__(self, setting: str, value: object, rule: str, choices: Iterable[object] = ()) -> None:
        self.setting, self.value, self.rule, self.choices = setting, value, rule, tuple(choices)
        text = f"{setting} = {value!r}: {rule}."
        names = [choice for choice in self.choices if isinstance(choice, str)]
        meant = get_close_matches(setting.rpartition(".")[2], names, 1, 0.8) or get_close_matches(str(value), names, 1)
        if meant:
            text += f" Did you mean {meant[0]}?"
        if self.choices:
            text += f" Valid: {', '.join(str(choice) for choice in self.choices)}."
        super().__init__(text)


class MissingExtra(XGenVideoError):
    """A verb needs a package of an extra that is not installed."""

    exit_code = 3

    def __init__(self, package: str, extra: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(
            f"This needs the package {package}. Install it with: pip install -c constraints.txt 'xgenvideo[{extra}]'"
        )


class DataError(XGenVideoError):
    """An input folder, a shard or a manifest is wrong."""


class MediaError(DataError):
    """One media file cannot be used. `reason` is the reason code that curation counts."""

    def __init__(self, reason: str, path: object, detail: str = "") -> None:
        self.reason, self.path, self.detail = reason, path, detail
        super().__init__(f"{path}: {reason}" + (f" ({detail})" if detail else ""))


class CheckpointError(XGenVideoError):
    """A checkpoint is corrupt, was made by another run, or cannot be written."""


class TrainError(XGenVideoError):
    """Training cannot start or go on."""


class ReleaseError(XGenVideoError):
    """An exported release is incomplete, damaged or does not fit its input."""
