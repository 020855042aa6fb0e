"""X-Gen-Video: pre-training of long-form video language models, from raw video to a released model."""

import contextlib
import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

__version__ = "0.1.0"
_AUTO = "transformers.models.auto.configuration_auto"


class _TellTransformers:
    """Once transformers is imported, its AutoConfig knows ours; until then nothing is: `xgv --help` must stay fast.

    The classes of model and processor follow when the first config is read (release/hub/configuration_xgenvideo.py).
    """

    @classmethod
    def find_spec(cls, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The module as it would be found anyway, and a line more at the end of its execution."""
        if name != _AUTO:
            return None
        sys.meta_path.remove(cls)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_tell(module: ModuleType) -> None:
                execute(module)
                _tell()

            spec.loader.exec_module = execute_and_tell  # type: ignore[method-assign]
        return spec


def _tell() -> None:
    # A transformers that is too old for our classes stays as usable as it would be without us.
    with contextlib.suppress(ImportError):
        importlib.import_module("xgenvideo.release.hub.local").register_config()


if _AUTO in sys.modules:
    _tell()
else:
    sys.meta_path.insert(0, _TellTransformers)
