"""What makes a release folder a Hugging Face model: config, generation defaults, tokenizer settings, template, code."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from xgenvideo.config import RunConfig
from xgenvideo.data.tokenizer import BOS, EOS, PAD, SPECIALS
from xgenvideo.infer.generate import STOPS
from xgenvideo.infer.release import NEW_TOKENS, PROCESSOR, SHORT_SIDE, TOKENIZER
from xgenvideo.models.vision import DEVIATION, MEAN
from xgenvideo.release.assemble import hub_code

MODEL_TYPE = "xgenvideo"
TEMPLATE = Path(__file__).parent / "hub" / "chat_template.jinja"
MODEL_CLASS = "modeling_xgenvideo.XGenVideoForConditionalGeneration"
AUTO_MAP = {
    "AutoConfig": "configuration_xgenvideo.XGenVideoConfig",
    "AutoModel": MODEL_CLASS,
    "AutoModelForCausalLM": MODEL_CLASS,
    "AutoProcessor": "processing_xgenvideo.XGenVideoProcessor",
}


def hub_files(config: RunConfig, tokenizer_json: str, known_tokens: int, dtype: str) -> dict[str, str]:
    """Every text file of a release that transformers reads, by name. `known_tokens`: ids that the tokenizer has."""
    settings = {
        "config.json": model_settings(config, dtype),
        "generation_config.json": generation_settings(config, known_tokens),
        "tokenizer_config.json": tokenizer_settings(config),
        TOKENIZER: begin_with_bos(json.loads(tokenizer_json)),
        PROCESSOR: processor_settings(config),
    }
    texts = {name: json.dumps(values, indent=2, ensure_ascii=False) + "\n" for name, values in settings.items()}
    return texts | {TEMPLATE.name: TEMPLATE.read_text(encoding="utf-8")} | hub_code()


def model_settings(config: RunConfig, dtype: str) -> dict[str, Any]:
    """config.json. Without the folder that the decoder started from: its weights are in the release."""
    model = dataclasses.asdict(config.model) | {"decoder_from": ""}
    return {
        "model_type": MODEL_TYPE,
        "architectures": [MODEL_CLASS.partition(".")[2]],
        "auto_map": {name: AUTO_MAP[name] for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM")},
        "dtype": dtype,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "model": model,
    }


def generation_settings(config: RunConfig, known_tokens: int) -> dict[str, Any]:
    """generation_config.json: greedy, up to any special token; rows of the head without a token are never chosen."""
    settings = {
        "do_sample": False,
        "max_new_tokens": NEW_TOKENS,
        "bos_token_id": BOS,
        "eos_token_id": list(STOPS),
        "pad_token_id": PAD,
    }
    unknown = list(range(known_tokens, config.model.decoder.vocab))
    return settings | ({"suppress_tokens": unknown} if unknown else {})


def tokenizer_settings(config: RunConfig) -> dict[str, Any]:
    """tokenizer_config.json. A text that spells a special token stays a text."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": SPECIALS[PAD],
        "bos_token": SPECIALS[BOS],
        "eos_token": SPECIALS[EOS],
        "extra_special_tokens": [SPECIALS[-1]],
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "model_max_length": config.data.text_tokens,
    }


def begin_with_bos(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.json whose texts begin with <|bos|> where special tokens are asked for; this program never asks."""
    bos, text = {"SpecialToken": {"id": SPECIALS[BOS], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    ids = {"id": SPECIALS[BOS], "ids": [BOS], "tokens": [SPECIALS[BOS]]}
    post = {"type": "TemplateProcessing", "single": [bos, text], "pair": [bos, text, second]}
    return tokenizer | {"post_processor": post | {"special_tokens": {SPECIALS[BOS]: ids}}}


def processor_settings(config: RunConfig) -> dict[str, Any]:
    """processor_config.json: what is done to a video before the encoder sees it."""
    size = config.model.vision.image_size
    return {
        "auto_map": {"AutoProcessor": AUTO_MAP["AutoProcessor"]},
        "fps": config.data.fps,
        "frames_per_window": config.data.frames,
        "sampling": "nearest frame by presentation timestamp; long videos as consecutive windows, never padded",
        "short_side": SHORT_SIDE,
        "resize": "short side to short_side while decoding, centre square, image_size by area if halved, else bilinear",
        "image_size": size,
        "normalisation": {"by": "the model", "image_mean": list(MEAN), "image_std": list(DEVIATION)},
    }
