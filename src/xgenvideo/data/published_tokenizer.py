"""The tokenizer of a published language model, with this program's special tokens in front of its ids.

Every id is `SHIFT` more than in the file, so that the ids 0 to 3 mean here what they mean everywhere in this program; a
decoder that starts from the model's weights shifts the rows of its embedding and head alike (models/warm_start.py).
"""

import json
from pathlib import Path
from typing import Any

import tokenizers

from xgenvideo.data.tokenizer import SPECIALS, Tokenizer
from xgenvideo.errors import ConfigError

SETTING = "data.tokenizer"
FILE = "tokenizer.json"
SHIFT = len(SPECIALS)


def adopt(path: Path) -> Tokenizer:
    """The tokenizer in a `tokenizer.json` of Hugging Face's tokenizers, or in a model's folder that has one.

    What it puts around a text (a first token, a template) is left out: documents begin and end as all of this program's
    do. Raises ConfigError for anything but byte-pair encoding, the kind of Llama, Mistral and Qwen.
    """
    file = tokenizer_file(path)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        kind = values["model"]["type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        cure = "transformers' AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes one"
        raise ConfigError(SETTING, str(path), f"must hold a {FILE} ({error!r}); {cure}") from error
    if kind != "BPE":
        raise ConfigError(SETTING, str(path), f"is a {kind} tokenizer; byte-pair encoding (BPE) is what can be used")
    try:
        adopted = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(_shifted(values))))
    except ConfigError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(SETTING, str(path), f"is not a file that tokenizers can read ({error})") from error
    ids = set(adopted.ids())
    if ids != set(range(len(ids))):
        raise ConfigError(SETTING, str(path), "leaves out some of its ids, so that rows of the embedding have no word")
    for special in SPECIALS:
        if any(number < SHIFT for number in adopted.encode(special)):
            raise ConfigError(SETTING, str(path), f"turns a text that spells {special} into that special token")
    return adopted


def tokenizer_file(path: Path) -> Path:
    """The file itself, or the one in a model's folder."""
    return path / FILE if path.is_dir() else path


def _shifted(values: dict[str, Any]) -> dict[str, Any]:
    """The file's content with our special tokens first and nothing added around a text."""
    ours = {special: number for number, special in enumerate(SPECIALS)}
    vocabulary = {_renamed(token): number + SHIFT for token, number in values["model"]["vocab"].items()}
    added = [
        one | {"id": one["id"] + SHIFT, "content": _renamed(one["content"])} for one in values.get("added_tokens", [])
    ]
    first = [
        {"id": number, "content": special, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for special, number in ours.items()
    ]
    model = values["model"] | {"vocab": ours | vocabulary}
    around = dict.fromkeys(("post_processor", "truncation", "padding"))
    return values | around | {"model": model, "added_tokens": first + added}


def _renamed(token: str) -> str:
    """Their token of one of our names keeps its id under another name."""
    return f"{token}*" if token in SPECIALS else token
