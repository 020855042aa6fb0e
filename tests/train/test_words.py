"""A run that starts from a language model with that model's words: rows, texts and the release go together."""

from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from xgenvideo.checkpoint.run import load_run
from xgenvideo.config import RunConfig, override
from xgenvideo.data.published_tokenizer import SHIFT
from xgenvideo.errors import ConfigError
from xgenvideo.parallel.engine import build_engine
from xgenvideo.parallel.world import World
from xgenvideo.release.export import export
from xgenvideo.train.loop import train

TEXTS = ["a red circle moves to the left", "Which appears first? the blue star", "yes", "no"]
END = "<|end_of_text|>"


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory, small_config: RunConfig) -> Path:
    """A Llama of the decoder's sizes with a tokenizer, in a folder as transformers writes it."""
    folder = tmp_path_factory.mktemp("llama")
    words = tokenizers.Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
    )
    words.add_special_tokens(["<|begin_of_text|>", END])
    words.save(str(folder / "tokenizer.json"))
    decoder = small_config.model.decoder
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=words.get_vocab_size(),
        hidden_size=decoder.width,
        intermediate_size=decoder.mlp,
        num_hidden_layers=decoder.depth,
        num_attention_heads=decoder.heads,
        num_key_value_heads=decoder.kv_heads,
        head_dim=decoder.head_size,
        rms_norm_eps=decoder.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": decoder.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=words.token_to_id(END),
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def started(config: RunConfig, folder: Path) -> RunConfig:
    """The config with the model's weights and words, at the size that its refusal names."""
    named = override(config, [f"model.decoder_from={folder}", f"data.tokenizer={folder}", "model.decoder.vocab=8"])
    with pytest.raises(ConfigError) as caught:
        build_engine(named, World(0, 1, torch.device("cpu")))
    return override(named, caught.value.rule.partition("; to start from it, set ")[2].split())


def test_a_checkpoint_with_words_of_its_own_asks_which_to_use(language_model: Path, small_config: RunConfig) -> None:
    config = override(small_config, [f"model.decoder_from={language_model}"])
    with pytest.raises(ConfigError, match=r"data.tokenizer=dataset") as caught:
        build_engine(config, World(0, 1, torch.device("cpu")))
    assert f"data.tokenizer={language_model}" in str(caught.value)


def test_the_first_logits_are_the_language_models_four_ids_on(language_model: Path, small_config: RunConfig) -> None:
    config = started(small_config, language_model)
    model = build_engine(config, World(0, 1, torch.device("cpu"))).model
    theirs = LlamaForCausalLM.from_pretrained(language_model).eval()
    rows, end = theirs.config.vocab_size, theirs.config.eos_token_id
    tokens = torch.randint(0, rows, (2, 12), generator=torch.Generator().manual_seed(3))
    positions = torch.arange(12).expand_as(tokens)
    nothing = torch.zeros_like(tokens)
    with torch.no_grad():
        found = model.logits(tokens + SHIFT, positions, nothing, None, nothing.bool())
        expected = theirs(tokens).logits
    torch.testing.assert_close(found[..., SHIFT : SHIFT + rows], expected, rtol=0, atol=1e-5)
    # Padding and the ends start as the model's own end; rows that no word has are zero.
    torch.testing.assert_close(
        found[..., :SHIFT], expected[..., end : end + 1].expand(-1, -1, SHIFT), rtol=0, atol=1e-5
    )
    assert found.shape[-1] % 128 == 0
    assert not found[..., SHIFT + rows :].any()


def test_a_run_and_its_release_read_texts_as_the_language_model_does(
    language_model: Path, run_config: RunConfig, tmp_path: Path
) -> None:
    config = override(started(run_config, language_model), ["train.steps=3"])
    train(override(config, ["train.stop_after_steps=2"]), tmp_path / "run", quiet=True)
    # The folder may move, its content may not change.
    moved = tmp_path / "moved"
    language_model.rename(moved)
    try:
        train(
            override(config, [f"data.tokenizer={moved}", f"model.decoder_from={moved}"]), tmp_path / "run", quiet=True
        )
    finally:
        moved.rename(language_model)
    run = load_run(tmp_path / "run")
    assert run.step == 3
    theirs = tokenizers.Tokenizer.from_file(str(language_model / "tokenizer.json"))
    export(tmp_path / "run", tmp_path / "release")
    released = AutoTokenizer.from_pretrained(tmp_path / "release")
    for text in TEXTS:
        expected = [number + SHIFT for number in theirs.encode(text).ids]
        assert run.tokenizer.encode(text) == expected
        assert released(text, add_special_tokens=False)["input_ids"] == expected
        assert released.decode(expected) == text
