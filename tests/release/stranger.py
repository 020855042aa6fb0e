"""What a user without this program does with a release: run in a process of its own by test_huggingface.py."""

import json
import sys
from typing import Any

sys.modules["xgenvideo"] = None  # type: ignore[assignment]

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor  # noqa: E402


def main() -> None:
    """Print, as JSON, what transformers' generate writes in several ways about the same video."""
    folder, video = sys.argv[1], sys.argv[2]
    questions = sys.argv[3:]
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    processor: Any = AutoProcessor.from_pretrained(folder, trust_remote_code=True)

    def written(inputs: Any, **how: Any) -> list[list[int]]:
        ids = model.generate(**inputs, **how)[:, inputs["input_ids"].shape[1] :]
        return [row.tolist() for row in ids]

    both = processor(text=[_prompt(processor, text) for text in questions], videos=[video] * len(questions))
    talk = [{"role": "user", "content": [{"type": "video", "path": video}, {"type": "text", "text": questions[0]}]}]
    chat = processor.apply_chat_template(talk, tokenize=True)
    results = {
        "model_type": config.model_type,
        "base": type(AutoModel.from_pretrained(folder, trust_remote_code=True)).__name__,
        "cached": written(both),
        "uncached": written(both, use_cache=False),
        "beams": written(both, num_beams=3),
        "caption": written(processor(text="", videos=video)),
        "blind": written(processor(text=_prompt(processor, questions[0]))),
        "chat": written(chat),
        "text": processor.batch_decode(model.generate(**chat), skip_special_tokens=True),
        "special": processor.tokenizer("<|eos|>")["input_ids"],
        "torchvision": "torchvision" in sys.modules,
    }
    print(json.dumps(results))


def _prompt(processor: Any, text: str) -> str:
    prompt: str = processor.apply_chat_template([{"role": "user", "content": text}])
    return prompt


if __name__ == "__main__":
    main()
