"""Another model's tokenizer under this program's special tokens."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from xgenvideo.data.published_tokenizer import SHIFT, adopt
from xgenvideo.data.tokenizer import SPECIALS, load
from xgenvideo.errors import ConfigError
from xgenvideo.models import warm_start

TEXTS = [
    "a red circle moves left, then a blue star appears",
    "Welche Farbe hat der Kreis? Rot: größer als blau",
    "<|eos|> 12",
]


def byte_level(specials: list[str]) -> tokenizers.Tokenizer:
    """As Llama 3 and Qwen: bytes as letters, special tokens behind the words, one of them before every text."""
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    made.add_special_tokens(specials)
    begin = specials[0]
    made.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, made.token_to_id(begin))]
    )
    return made


def with_byte_fallback() -> tokenizers.Tokenizer:
    """As Mistral's first: letters, unknown ones as bytes, special tokens before the words."""
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256))],
        show_progress=False,
    )
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
def test_ids_are_four_more_and_the_text_comes_back(kind: str, tmp_path: Path) -> None:
    theirs = byte_level(["<|begin|>", "<|end|>"]) if kind == "byte level" else with_byte_fallback()
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = adopt(tmp_path)
    for text in TEXTS:
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == [number + SHIFT for number in expected]
        assert ours.decode(ours.encode(text)) == text
    assert ours.size == theirs.get_vocab_size() + SHIFT
    assert [ours.decode([number]) for number in range(SHIFT)] == [""] * SHIFT
    ours.save(tmp_path / "run.json")
    assert load(tmp_path / "run.json").encode(TEXTS[1]) == ours.encode(TEXTS[1])


def test_names_that_both_use_stay_apart(tmp_path: Path) -> None:
    byte_level(["<|bos|>", "<|eos|>"]).save(str(tmp_path / "tokenizer.json"))
    ours = adopt(tmp_path / "tokenizer.json")
    for special in SPECIALS:
        assert ours.decode(ours.encode(special)) == special
        assert min(ours.encode(special)) >= SHIFT


def test_the_model_shifts_its_rows_by_as_much() -> None:
    assert warm_start.SHIFT == SHIFT == len(SPECIALS)


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="save_pretrained"):
        adopt(tmp_path)
    word_level = tokenizers.Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    word_level.save(str(tmp_path / "words.json"))
    with pytest.raises(ConfigError, match="is a WordLevel tokenizer"):
        adopt(tmp_path / "words.json")
    byte_level(["<|begin|>"]).save(str(tmp_path / "tokenizer.json"))
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    values["model"]["vocab"] = {token: number + 7 for token, number in values["model"]["vocab"].items()}
    values["added_tokens"] = []
    values["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="leaves out some of its ids"):
        adopt(tmp_path)
