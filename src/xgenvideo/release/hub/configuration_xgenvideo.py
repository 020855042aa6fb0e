"""The config of a released model, as transformers reads it."""

from typing import Any

from transformers import PreTrainedConfig


class XGenVideoConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """`model`: the sections of the trained model. The other sizes follow from it and are what `generate` asks for."""

    model_type = "xgenvideo"

    def __init__(self, model: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.model = model or {}
        decoder = self.model.get("decoder", {})
        self.vocab_size = decoder.get("vocab", 0)
        self.hidden_size = decoder.get("width", 0)
        self.num_hidden_layers = decoder.get("depth", 0)
        self.num_attention_heads = decoder.get("heads", 0)
        self.num_key_value_heads = decoder.get("kv_heads", 0)
        self.head_dim = decoder.get("head_size", 0)
        derived = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        for name in (*derived, "num_key_value_heads", "head_dim"):
            kwargs.pop(name, None)
        super().__init__(**{"tie_word_embeddings": False} | kwargs)
