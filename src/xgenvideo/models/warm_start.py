"""A language model's checkpoint as starting values of the decoder: Llama, Mistral, Qwen2, Qwen3, in safetensors.

The folder is what transformers' `save_pretrained` writes. Nothing in it is unpickled, and a rank reads only its parts.
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from xgenvideo.config import DecoderConfig, RunConfig
from xgenvideo.errors import ConfigError
from xgenvideo.models.decoder import Decoder
from xgenvideo.models.initial import Box

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SETTING = "model.decoder_from"
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
DTYPES = ("F64", "F32", "F16", "BF16")
ROWS_TOGETHER = 128  # so that tensor parallelism divides the rows
SHIFT = 4  # special tokens before the ids of a published tokenizer (data/published_tokenizer.py)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BLOCK = {
    "attention_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


class LanguageWeights:
    """The tensors of a checkpoint under the names that they have in `VideoLM`.

    All of it that can be checked without reading weights is checked at birth: family, sizes, names, shapes, types.
    Raises ConfigError naming the setting, its value here and there, and the cure.
    """

    def __init__(self, config: RunConfig) -> None:
        self.folder = Path(config.model.decoder_from)
        theirs = read_family(self.folder)
        check_sizes(config, theirs, self.folder)
        self._first_rows = special_rows(theirs) if config.data.published_tokenizer else ()
        self._vocab, self._rows = theirs.vocab_size, config.model.decoder.vocab
        self._files = tensor_files(self.folder)
        self._open: dict[Path, Any] = {}
        self._names = checkpoint_names(config.model.decoder, tied=bool(theirs.tie_word_embeddings))
        self._check_tensors(config.model.decoder, tied=bool(theirs.tie_word_embeddings))

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def part(self, name: str, box: Box) -> Tensor:
        """The part `box` of the parameter `name`, in the type that the file has."""
        stored = self._slice(self._names[name])
        if self._first_rows and self._names[name] in (EMBEDDING, HEAD):
            return self._shifted_rows(stored, box)
        part: Tensor = stored[box]
        return part

    def _shifted_rows(self, stored: Any, box: Box) -> Tensor:
        """Rows of the embedding or head under ids that are `SHIFT` more; rows that no id of theirs has are zero."""
        first, last, _ = box[0].indices(self._rows)
        rows: Tensor = stored[(slice(max(0, first - SHIFT), max(0, min(last - SHIFT, self._vocab))), *box[1:])]
        whole = rows.new_zeros(last - first, *rows.shape[1:])
        start = max(0, SHIFT - first)
        whole[start : start + len(rows)] = rows
        for number in range(first, min(last, SHIFT)):
            row = self._first_rows[number]
            whole[number - first] = stored[(slice(row, row + 1), *box[1:])][0]
        return whole

    def _slice(self, tensor: str) -> Any:
        file = self._files[tensor]
        try:
            if file not in self._open:
                # A handle maps the file into memory: bytes are read when a part is asked for.
                self._open[file] = safe_open(file, framework="pt")
            return self._open[file].get_slice(tensor)
        except (OSError, SafetensorError) as error:
            raise _refusal(self.folder, f"{file.name} cannot be read ({error})") from error

    def _check_tensors(self, decoder: DecoderConfig, tied: bool) -> None:
        expected = {self._names[name]: shape for name, shape in decoder_shapes(decoder).items()}
        missing = sorted(expected.keys() - self._files.keys())
        if missing:
            raise _refusal(self.folder, f"lacks {len(missing)} of {len(expected)} tensors, the first is {missing[0]}")
        # Old Llama files hold tables of rotary frequencies; a tied head is the embedding, whatever the file says.
        foreign = {name for name in self._files.keys() - expected.keys() if not name.endswith("rotary_emb.inv_freq")}
        foreign -= {HEAD} if tied else set()
        if foreign:
            rule = f"has tensors that the decoder does not know, {sorted(foreign)[0]} among {len(foreign)}"
            raise _refusal(self.folder, f"{rule}: it would compute something else")
        if self._first_rows:
            expected |= {name: (self._vocab, decoder.width) for name in (EMBEDDING, HEAD) if name in expected}
        for tensor, shape in expected.items():
            found = self._slice(tensor)
            where = f"{tensor} in {self._files[tensor].name}"
            if tuple(found.get_shape()) != shape:
                raise _refusal(self.folder, f"{where} has the shape {tuple(found.get_shape())}, not {shape}")
            if found.get_dtype() not in DTYPES:
                raise _refusal(self.folder, f"{where} is stored as {found.get_dtype()}, not as {', '.join(DTYPES)}")


def _refusal(folder: Path, rule: str) -> ConfigError:
    return ConfigError(SETTING, str(folder), rule)


def read_family(folder: Path) -> "PretrainedConfig":
    """config.json of a checkpoint with its family's defaults filled in. Raises ConfigError."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # seconds: only for who starts from one

    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _refusal(folder, f"must be a folder with config.json and {SINGLE} ({error})") from error
    kind = str(values.get("model_type")) if isinstance(values, dict) else ""
    if kind not in FAMILIES:
        raise ConfigError(SETTING, str(folder), f"config.json says model_type {kind!r}, not a known family", FAMILIES)
    if values.get("quantization_config"):
        raise _refusal(folder, "config.json says that its weights are quantised; give the ones that are not")
    try:
        family: PretrainedConfig = CONFIG_MAPPING[kind].from_dict(values)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise _refusal(folder, f"config.json is no {kind} config ({error})") from error
    return family


def check_sizes(config: RunConfig, theirs: "PretrainedConfig", folder: Path) -> None:
    """Refuse what the decoder does not compute, then sizes that are not the recipe's: all of them in one message."""
    rope = theirs.rope_parameters or {}
    unlike = {
        "hidden_act": (theirs.hidden_act, "silu"),
        "attention_bias": (bool(getattr(theirs, "attention_bias", False)), False),
        "mlp_bias": (bool(getattr(theirs, "mlp_bias", False)), False),
        "partial_rotary_factor": (rope.get("partial_rotary_factor", 1.0), 1.0),
    }
    for key, (found, known) in unlike.items():
        if found != known:
            raise _refusal(folder, f"config.json says {key} = {found!r}; the decoder computes {known!r} alone")
    if rope.get("rope_type", "default") not in ("default", "llama3"):
        raise ConfigError(SETTING, str(folder), f"has rope_type {rope['rope_type']!r}", ("default", "llama3"))
    window, tokens = getattr(theirs, "sliding_window", None), config.data.text_tokens
    if window and tokens > window:
        rule = f"must be at most {window}, the sliding window of {SETTING} = {folder}; the decoder's attention has none"
        raise ConfigError("data.text_tokens", tokens, rule)
    wanted = decoder_settings(theirs)
    _check_words(config, theirs, folder)
    if config.data.published_tokenizer and config.model.decoder.vocab >= theirs.vocab_size + SHIFT:
        del wanted["vocab"]
    elif config.data.published_tokenizer:
        wanted["vocab"] = math.ceil((theirs.vocab_size + SHIFT) / ROWS_TOGETHER) * ROWS_TOGETHER
    ours = {name: _value(config.model.decoder, name) for name in wanted}
    differing = [name for name in wanted if ours[name] != wanted[name]]
    if differing:
        first = differing[0]
        cure = " ".join(f"model.decoder.{name}={json.dumps(wanted[name])}" for name in differing)
        rule = f"is {wanted[first]!r} in {folder / 'config.json'}; to start from it, set {cure}"
        raise ConfigError(f"model.decoder.{first}", ours[first], rule)


def _check_words(config: RunConfig, theirs: "PretrainedConfig", folder: Path) -> None:
    """Refuse to train rows that meant other words, unless it is said."""
    if (folder / "tokenizer.json").is_file() and not config.data.tokenizer:
        rule = f"{SETTING} has a tokenizer: set data.tokenizer={folder}, or data.tokenizer=dataset to give its rows up"
        raise ConfigError("data.tokenizer", "", rule)
    if config.data.published_tokenizer and _ends(theirs) is None:
        raise _refusal(folder, "config.json names no eos_token_id, which the special tokens start from")


def _ends(theirs: "PretrainedConfig") -> int | None:
    """The id that ends a text; a list names several."""
    ends = theirs.eos_token_id
    first: int | None = ends[0] if isinstance(ends, list) else ends
    return first


def special_rows(theirs: "PretrainedConfig") -> tuple[int, ...]:
    """Their rows that our four special tokens start as: padding, first token, end of text, end of caption."""
    end = _ends(theirs)
    assert end is not None, "check_sizes refuses a config without an end"
    first = end if theirs.bos_token_id is None else theirs.bos_token_id
    return end, first, end, end


def decoder_settings(theirs: "PretrainedConfig") -> dict[str, int | float | bool]:
    """What `model.decoder` must say for the decoder to be a checkpoint's model; dotted names for nested settings."""
    heads, rope = theirs.num_attention_heads, theirs.rope_parameters or {}
    settings: dict[str, int | float | bool] = {
        "width": theirs.hidden_size,
        "depth": theirs.num_hidden_layers,
        "heads": heads,
        "kv_heads": getattr(theirs, "num_key_value_heads", None) or heads,
        "head_size": getattr(theirs, "head_dim", None) or theirs.hidden_size // heads,
        "mlp": theirs.intermediate_size,
        "vocab": theirs.vocab_size,
        "rope_theta": float(rope.get("rope_theta", 10_000.0)),
        "norm_eps": theirs.rms_norm_eps,
        "attention_biases": theirs.model_type == "qwen2",
        "query_key_norm": theirs.model_type == "qwen3",
        "rope_scaling.factor": 1.0,
    }
    if rope.get("rope_type", "default") == "llama3":
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            settings[f"rope_scaling.{name}"] = float(rope[name])
        settings["rope_scaling.original_positions"] = rope["original_max_position_embeddings"]
    return settings


def _value(decoder: DecoderConfig, name: str) -> Any:
    section, _, last = name.rpartition(".")
    return getattr(getattr(decoder, section) if section else decoder, last)


def tensor_files(folder: Path) -> dict[str, Path]:
    """The file that holds each tensor: one file, or shards with an index. Raises ConfigError."""
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():
        try:
            with safe_open(single, framework="pt") as file:
                return dict.fromkeys(file.keys(), single)
        except (OSError, SafetensorError) as error:
            raise _refusal(folder, f"{single.name} cannot be read ({error})") from error
    if not index.is_file():
        pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickled:
            cure = "write it again with transformers' save_pretrained, which writes safetensors"
            raise _refusal(folder, f"has only pickled weights ({pickled[0]}), which could run code when read; {cure}")
        raise _refusal(folder, f"has neither {SINGLE} nor {INDEX}")
    try:
        placed: dict[str, str] = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _refusal(folder, f"{INDEX} cannot be read ({error!r})") from error
    for file_name in sorted(set(placed.values())):
        if Path(file_name).name != file_name or not (folder / file_name).is_file():
            raise _refusal(folder, f"{INDEX} names {file_name}, which is no file of the folder")
    return {tensor: folder / file_name for tensor, file_name in placed.items()}


def decoder_shapes(decoder: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Name in `VideoLM` and whole shape of every parameter of the decoder that a text-only model has too."""
    with torch.device("meta"):
        whole = Decoder(decoder, latent_width=2)
    named = {f"decoder.{name}": tuple(parameter.shape) for name, parameter in whole.named_parameters()}
    return {name: shape for name, shape in named.items() if not name.startswith("decoder.cross.")}


def checkpoint_names(decoder: DecoderConfig, tied: bool) -> dict[str, str]:
    """Name in `VideoLM` -> name in the checkpoint. A tied head starts as a copy of the embedding, and trains apart."""
    names = {
        "decoder.embedding.weight": EMBEDDING,
        "decoder.norm.weight": "model.norm.weight",
        "decoder.head.weight": EMBEDDING if tied else HEAD,
    }
    for name in decoder_shapes(decoder).keys() - names.keys():
        _, _, layer, rest = name.split(".", 3)
        part, _, kind = rest.rpartition(".")
        names[name] = f"model.layers.{layer}.{BLOCK[part]}.{kind}"
    return names
