"""The classes of `release/hub` for transformers where this program is imported: no trust_remote_code is needed then."""

from typing import Any

from transformers.models.auto.configuration_auto import AutoConfig

from xgenvideo.release.hub.configuration_xgenvideo import XGenVideoConfig as ReleasedConfig


class XGenVideoConfig(ReleasedConfig):  # type: ignore[no-untyped-call]
    """Registers model and processor when the first config is read: only then are torch and the model needed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        register_classes()


def register_config() -> None:
    """Tell AutoConfig."""
    AutoConfig.register(XGenVideoConfig.model_type, XGenVideoConfig, exist_ok=True)


def register_classes() -> None:
    """Tell AutoModel, AutoModelForCausalLM and AutoProcessor."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor

    from xgenvideo.release.hub.modeling_xgenvideo import XGenVideoForConditionalGeneration
    from xgenvideo.release.hub.processing_xgenvideo import XGenVideoProcessor

    processors: Any = AutoProcessor
    for kind in (AutoModel, AutoModelForCausalLM):
        kind.register(XGenVideoConfig, XGenVideoForConditionalGeneration, exist_ok=True)
    processors.register(XGenVideoConfig, XGenVideoProcessor, exist_ok=True)
