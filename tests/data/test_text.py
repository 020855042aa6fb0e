"""Tokenizer and packing: any text comes back, documents stay apart, only what must be learnt is a target."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from xgenvideo.data.text import (
    IGNORED,
    Document,
    caption_group,
    pack,
    pack_documents,
    pack_question,
    question_prompt,
    texts,
)
from xgenvideo.data.tokenizer import BOS, CAPTION_END, EOS, PAD, SPECIALS, Tokenizer, load, train_tokenizer
from xgenvideo.errors import ConfigError, DataError
from xgenvideo.records import Question, Sample


@pytest.fixture(scope="module")
def tokenizer(tiny_samples: list[Sample]) -> Tokenizer:
    return train_tokenizer(texts(tiny_samples), 400)


def sample(caption: str = "A red square moves right.", questions: int = 2) -> Sample:
    asked = tuple(Question(f"Which way, number {i}?", ("right", "left"), 1, "direction") for i in range(questions))
    return Sample("k", (b"x",), (0.0,), caption, "s", asked)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert min(ids, default=9) >= len(SPECIALS)


@pytest.mark.parametrize("special", SPECIALS)
def test_a_text_cannot_spell_a_special_token(tokenizer: Tokenizer, tmp_path: Path, special: str) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    for each in (tokenizer, load(tmp_path / "tokenizer.json")):
        ids = each.encode(f"red {special} blue")
        assert min(ids) >= len(SPECIALS)
        assert each.decode(ids) == f"red {special} blue"


def test_saved_and_loaded_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = load(tmp_path / "tokenizer.json")
    text = "A red square moves left, seen in 20 frames. Grün 🟩"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.size == tokenizer.size <= 400
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_training_does_not_depend_on_order_or_process(tiny_samples: list[Sample], tmp_path: Path) -> None:
    code = (
        "import json, sys; from pathlib import Path; from xgenvideo.data.tokenizer import train_tokenizer;"
        "train_tokenizer(json.loads(sys.argv[1]), 300).save(Path(sys.argv[2]))"
    )
    corpus = list(texts(tiny_samples))
    train_tokenizer(corpus[::-1], 300).save(tmp_path / "here.json")
    subprocess.run([sys.executable, "-c", code, json.dumps(corpus), str(tmp_path / "there.json")], check=True)
    assert (tmp_path / "here.json").read_bytes() == (tmp_path / "there.json").read_bytes()


def test_bad_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be at least 260"):
        train_tokenizer(["a"], 259)
    path = tmp_path / "tokenizer.json"
    with pytest.raises(DataError, match="no tokenizer can be read"):
        load(path)
    path.write_text('{"version": "1.0"}')
    with pytest.raises(DataError, match="is not a tokenizer file"):
        load(path)
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(path))
    with pytest.raises(DataError, match="the first tokens are"):
        load(path)


def test_the_layout_of_a_packed_sample(tokenizer: Tokenizer) -> None:
    caption = tokenizer.encode("A red square moves right.")
    prompt, answer = tokenizer.encode(question_prompt("Which way, number 0?")), tokenizer.encode(" left")
    packed = pack(sample(questions=1), tokenizer, 96)
    first = [BOS, *caption, CAPTION_END, EOS]
    second = [BOS, *prompt, *answer, EOS]
    used = len(first) + len(second)
    assert packed.tokens.tolist() == first + second + [PAD] * (96 - used)
    assert packed.documents.tolist() == [0] * len(first) + [1] * len(second) + [-1] * (96 - used)
    assert packed.positions.tolist() == [*range(len(first)), *range(len(second)), *[0] * (96 - used)]
    assert packed.sees_video.tolist() == [True] * used + [False] * (96 - used)
    assert packed.tokens[packed.caption_end] == CAPTION_END
    expected = [*first[1:], IGNORED] + [IGNORED] * len(prompt) + [*answer, EOS, IGNORED] + [IGNORED] * (96 - used)
    assert packed.targets.tolist() == expected


@given(st.integers(0, 6), st.integers(0, 7), st.integers(8, 90), st.text("ab .", max_size=80))
def test_packing_keeps_its_rules(
    tokenizer: Tokenizer, questions: int, first_question: int, length: int, caption: str
) -> None:
    packed = pack(sample(caption, questions), tokenizer, length, first_question)
    assert len(packed.tokens) == length
    assert packed.tokens[packed.caption_end] == CAPTION_END
    assert packed.tokens[packed.caption_end + 1] == EOS
    learnt = np.flatnonzero(packed.targets != IGNORED)
    assert np.array_equal(packed.targets[learnt], packed.tokens[learnt + 1])
    assert np.array_equal(packed.documents[learnt], packed.documents[learnt + 1])
    for document in range(int(packed.documents.max()) + 1):
        place = packed.documents == document
        assert packed.tokens[place][0] == BOS
        assert packed.tokens[place][-1] == EOS
        assert packed.positions[place].tolist() == list(range(int(place.sum())))


def test_over_epochs_every_question_gets_its_turn(tokenizer: Tokenizer) -> None:
    short = pack(sample(questions=3), tokenizer, 60)
    assert int(short.documents.max()) < 3
    seen = {tokenizer.decode(pack(sample(questions=3), tokenizer, 60, epoch).tokens) for epoch in range(3)}
    assert all(any(f"number {i}?" in text for text in seen) for i in range(3))


def test_options_of_a_question_differ_only_in_the_answer(tokenizer: Tokenizer) -> None:
    right, left = (pack_question("Which way?", option, tokenizer, 48) for option in ("right", "left"))
    prompt = 1 + len(tokenizer.encode(question_prompt("Which way?")))
    assert np.array_equal(right.tokens[:prompt], left.tokens[:prompt])
    assert (right.targets[: prompt - 1] == IGNORED).all()
    assert right.targets[right.targets != IGNORED].tolist() == [*tokenizer.encode(" right"), EOS]
    with pytest.raises(DataError, match=r"data\.text_tokens is 10"):
        pack_question("Which way?" * 9, "left", tokenizer, 10)


def test_equal_captions_are_one_group() -> None:
    assert caption_group(" A Red square ") == caption_group("a red square")
    assert caption_group("a red square") != caption_group("a blue square")
    assert 0 <= caption_group("x") < 2**63


def test_documents_that_do_not_fit_are_our_own_bug() -> None:
    with pytest.raises(AssertionError, match="need 5 tokens, there are 4"):
        pack_documents([Document((1, 5, 6, 3, 2), 1)], 4, 0, 0)
