"""A release loaded in 8 or 4 bits by transformers without this program: run in a process of its own."""

import json
import sys
from typing import Any

sys.modules["xgenvideo"] = None  # type: ignore[assignment]

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoProcessor, QuantoConfig  # noqa: E402


def main() -> None:
    """Print, as JSON, for 8 and 4 bits: bytes of the weights, error of the logits, and what is written."""
    folder, video, question = sys.argv[1:]
    processor: Any = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    talk = [{"role": "user", "content": [{"type": "video", "path": video}, {"type": "text", "text": question}]}]
    inputs = processor.apply_chat_template(talk, tokenize=True)
    whole: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        expected = whole(**inputs).logits
    results: dict[str, Any] = {"float32": {"bytes": sum(map(held, whole.parameters()))}}
    for kind in ("int8", "int4"):
        settings = QuantoConfig(weights=kind)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=True, quantization_config=settings
        ).eval()
        with torch.no_grad():
            logits = model(**inputs).logits
        written = model.generate(**inputs, max_new_tokens=8)
        results[kind] = {
            "bytes": sum(map(held, model.parameters())),
            "error": float((logits - expected).norm() / expected.norm()),
            "written": processor.post_process_text(written, inputs["input_ids"].shape[1]),
        }
    print(json.dumps(results))


def held(tensor: Any) -> int:
    """Bytes of a tensor, of a quantised one those of all that it is made of."""
    if type(tensor) in (torch.Tensor, torch.nn.Parameter):
        return int(tensor.nbytes)
    names, _ = tensor.__tensor_flatten__()
    return sum(held(getattr(tensor, name)) for name in names)


if __name__ == "__main__":
    main()
