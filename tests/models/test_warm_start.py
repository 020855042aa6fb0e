"""A decoder that starts from a language model's checkpoint computes what that model computes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from xgenvideo import recipes
from xgenvideo.config import RunConfig, override
from xgenvideo.errors import ConfigError
from xgenvideo.infer.cache import DecodingCache
from xgenvideo.models.initial import starting_value
from xgenvideo.parallel.engine import build_engine
from xgenvideo.parallel.world import World
from xgenvideo.plan.parameters import parameters

CPU = World(0, 1, torch.device("cpu"))
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def checkpoint(family: str, attention: str = "eager", **changes: Any) -> PreTrainedModel:
    """A model of a family in float32 with every weight random, norms and biases too."""
    kind, made, own = {
        "llama": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LLAMA3, "rms_norm_eps": 1e-5}),
        "mistral": (MistralForCausalLM, MistralConfig, {"head_dim": 16, "sliding_window": 32}),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
        "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16}),
    }[family]
    torch.manual_seed(5)
    config = made(**SIZES | own | changes)
    config._attn_implementation = attention
    model = kind(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.2)
            else:
                parameter.normal_(0.0, 0.2)
    found: PreTrainedModel = model
    return found


def write(model: PreTrainedModel, folder: Path, shard: str = "1GB") -> Path:
    """The checkpoint as transformers writes it, in shards of at most `shard`."""
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def refusal(config: RunConfig) -> ConfigError:
    """What building the engine says."""
    with pytest.raises(ConfigError) as caught:
        build_engine(config, CPU)
    return caught.value


def starting_from(folder: Path, *changes: str) -> RunConfig:
    """The tiny recipe with a checkpoint named."""
    named = ["model.vision.weights=random:0", "data.text_tokens=24", f"model.decoder_from={folder}", *changes]
    return override(recipes.find("tiny"), named)


def fitted(folder: Path, *changes: str) -> RunConfig:
    """The recipe with the cure that the refusal of its sizes names."""
    config = starting_from(folder, *changes)
    _, _, cure = refusal(config).rule.partition("; to start from it, set ")
    return override(config, cure.split())


def text_logits(config: RunConfig, tokens: Tensor) -> Tensor:
    """Logits of a text without video."""
    engine = build_engine(config, CPU)
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    documents = torch.zeros_like(tokens)
    with torch.no_grad():
        return engine.model.logits(tokens, positions, documents, None, torch.zeros_like(tokens, dtype=torch.bool))


@pytest.fixture
def tokens() -> Tensor:
    """Three texts longer than the rotary scaling's original length."""
    return torch.randint(0, SIZES["vocab_size"], (3, 24), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family: str, shard: str, tokens: Tensor, tmp_path: Path) -> None:
    model = checkpoint(family, "eager" if shard == "1GB" else "sdpa")
    folder = write(model, tmp_path / "checkpoint", shard)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shard != "1GB")
    with torch.no_grad():
        expected = model(tokens).logits
    found = text_logits(fitted(folder), tokens)
    assert expected.abs().max() > 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_new_parameters_keep_their_starting_values(family: str, tmp_path: Path) -> None:
    config = fitted(write(checkpoint(family), tmp_path))
    engine = build_engine(config, CPU)
    kept = [
        name for name, _ in engine.model.named_parameters() if name.startswith(("decoder.cross", "resampler", "text"))
    ]
    assert len(kept) > 30
    for name in kept:
        parameter = engine.model.get_parameter(name)
        assert torch.equal(parameter, starting_value(name, parameter.shape, config.model, config.train.seed)), name
    assert sum(p.numel() for p in engine.model.parameters()) == parameters(config.model).total


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_with_a_cache_has_the_logits_of_the_whole_text(family: str, tokens: Tensor, tmp_path: Path) -> None:
    model = checkpoint(family)
    decoder = build_engine(fitted(write(model, tmp_path)), CPU).model.decoder
    texts = tokens.tolist()
    with torch.no_grad():
        expected = model(tokens).logits
        cache = DecodingCache(decoder, None, [0] * len(texts), tokens.shape[1])
        found = [cache.start([text[:20] for text in texts])]
        found += [cache.step([text[place] for text in texts]) for place in range(20, 24)]
    torch.testing.assert_close(torch.stack(found, dim=1), expected[:, 19:], rtol=0, atol=1e-5)


def test_a_tied_head_starts_as_a_copy_of_the_embedding(tmp_path: Path) -> None:
    decoder = build_engine(fitted(write(checkpoint("qwen2"), tmp_path)), CPU).model.decoder
    assert torch.equal(decoder.head.weight, decoder.embedding.weight)
    assert decoder.head.weight.data_ptr() != decoder.embedding.weight.data_ptr()


def test_other_sizes_are_one_sentence_with_the_cure(tmp_path: Path) -> None:
    folder = write(checkpoint("qwen3"), tmp_path)
    error = refusal(starting_from(folder))
    assert error.setting == "model.decoder.width"
    assert error.value == 128
    assert "is 32 in" in error.rule
    for change in ("width=32", "depth=8", "head_size=16", "vocab=64", "norm_eps=1e-06", "query_key_norm=true"):
        assert f"model.decoder.{change}" in error.rule
    config = override(fitted(folder), ["model.decoder.rope_theta=500000.0"])
    assert "set model.decoder.rope_theta=10000.0" in str(refusal(config))


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("llama", {"attention_bias": True}, "attention_bias = True"),
        ("llama", {"mlp_bias": True}, "mlp_bias = True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("qwen3", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "Valid: default"),
        ("mistral", {"sliding_window": 20}, "data.text_tokens = 24: must be at most 20"),
    ],
)
def test_what_the_decoder_does_not_compute_is_refused(
    family: str, changes: dict[str, object], says: str, tmp_path: Path
) -> None:
    folder = write(checkpoint(family, **changes), tmp_path)
    assert says in str(refusal(starting_from(folder)))


def damage_missing(folder: Path) -> None:
    """Leave out one tensor."""
    state = load_file(folder / "model.safetensors")
    del state["model.layers.3.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def damage_shape(folder: Path) -> None:
    """One tensor of another shape."""
    state = load_file(folder / "model.safetensors")
    state["model.layers.3.mlp.up_proj.weight"] = torch.zeros(47, 32)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def damage_foreign(folder: Path) -> None:
    """A tensor that no family knows."""
    state = load_file(folder / "model.safetensors")
    state["model.layers.3.extra_norm.weight"] = torch.zeros(32)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def damage_integers(folder: Path) -> None:
    """Quantised weights."""
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"] = state["model.norm.weight"].to(torch.int8)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def damage_pickle(folder: Path) -> None:
    """Weights as torch.save writes them."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def damage_cut(folder: Path) -> None:
    """A download that broke off."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def damage_model_type(folder: Path) -> None:
    """Another family."""
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"model_type": "gpt2"}))


def damage_index(folder: Path) -> None:
    """An index that points out of the folder."""
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"weight_map": dict.fromkeys(names, "../model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_missing, "lacks 1 of 75 tensors, the first is model.layers.3.mlp.up_proj.weight"),
        (damage_shape, "model.layers.3.mlp.up_proj.weight in model.safetensors has the shape (47, 32), not (48, 32)"),
        (damage_foreign, "model.layers.3.extra_norm.weight among 1"),
        (damage_integers, "model.norm.weight in model.safetensors is stored as I8"),
        (damage_pickle, "only pickled weights (pytorch_model.bin), which could run code when read"),
        (damage_cut, "model.safetensors cannot be read"),
        (damage_model_type, "Valid: llama, mistral, qwen2, qwen3"),
        (damage_index, "names ../model.safetensors, which is no file of the folder"),
        (shutil.rmtree, "must be a folder with config.json"),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(damage: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    folder = write(checkpoint("mistral"), tmp_path / "checkpoint")
    config = fitted(folder)
    damage(folder)
    error = refusal(config)
    assert error.setting == "model.decoder_from"
    assert error.value == str(folder)
    assert says in str(error)
