"""Packing one sample's caption and questions into a fixed number of tokens, as separate documents.

Attention stays within a document (models read `documents`), so an answer cannot be read from the caption.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xgenvideo.data.tokenizer import BOS, CAPTION_END, EOS, PAD, Tokenizer
from xgenvideo.errors import DataError
from xgenvideo.records import Question

IGNORED = -100
PADDING_DOCUMENT = -1


class Described(Protocol):
    """What has a caption and questions: a Sample, or a Row of the manifest."""

    @property
    def caption(self) -> str:
        """What is visible."""
        ...

    @property
    def questions(self) -> tuple[Question, ...]:
        """Questions about the clip."""
        ...


@dataclass(frozen=True)
class Document:
    """Token ids of one document; the ids from `predicted_from` on are learnt, those before are only read."""

    ids: tuple[int, ...]
    predicted_from: int


@dataclass(frozen=True)
class TokenisedText:
    """All documents of one sample: what is the same in every epoch."""

    caption: Document
    questions: tuple[Document, ...]
    caption_group: int


@dataclass(frozen=True, repr=False)
class PackedText:
    """Documents packed into T tokens. tokens, targets, documents, positions [T] int64.

    `caption_end`: index of <|endofcaption|> (0 where there is no caption). `caption_group`: equal for equal captions.
    """

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    documents: NDArray[np.int64]
    positions: NDArray[np.int64]
    caption_end: int
    caption_group: int

    def __post_init__(self) -> None:
        shapes = {array.shape for array in (self.tokens, self.targets, self.documents, self.positions)}
        if len(shapes) != 1 or not 0 <= self.caption_end < len(self.tokens):
            raise DataError(f"packed text has shapes {shapes} and caption_end {self.caption_end}")

    @property
    def sees_video(self) -> NDArray[np.bool_]:
        """[T] True at every token that is not padding."""
        sees: NDArray[np.bool_] = self.documents != PADDING_DOCUMENT
        return sees

    def __repr__(self) -> str:
        count, length = int(self.documents.max()) + 1, len(self.tokens)
        return f"PackedText(T={length}, used={int(self.sees_video.sum())}, documents={count})"


def question_prompt(question_text: str) -> str:
    """The text before an answer. The answer follows as f" {answer}"."""
    return f"Question: {question_text} Answer:"


def caption_document(caption: str, tokenizer: Tokenizer, length: int) -> Document:
    """<bos> caption <endofcaption> <eos>; a caption too long for `length` tokens loses its end, not its marks."""
    ids = tokenizer.encode(caption)[: length - 3]
    return Document((BOS, *ids, CAPTION_END, EOS), predicted_from=1)


def question_document(question_text: str, answer: str, tokenizer: Tokenizer) -> Document:
    """<bos> prompt answer <eos>, of which the answer and <eos> are predicted."""
    prompt = (BOS, *tokenizer.encode(question_prompt(question_text)))
    return Document((*prompt, *tokenizer.encode(f" {answer}"), EOS), predicted_from=len(prompt))


def tokenise(sample: Described, tokenizer: Tokenizer, length: int) -> TokenisedText:
    """A sample's caption, cut to `length` tokens if it must be, and each question with its right answer."""
    questions = (
        question_document(question.text, question.options[question.answer], tokenizer) for question in sample.questions
    )
    caption = caption_document(sample.caption, tokenizer, length)
    return TokenisedText(caption, tuple(questions), caption_group(sample.caption))


def pack_tokenised(text: TokenisedText, length: int, first_question: int = 0) -> PackedText:
    """The caption as document 0, then each question that still fits.

    Questions are taken in turn from number `first_question` on, so that over epochs each of many comes to fit.
    """
    documents, used = [text.caption], len(text.caption.ids)
    turn = first_question % max(1, len(text.questions))
    for question in (*text.questions[turn:], *text.questions[:turn]):
        if used + len(question.ids) <= length:
            documents.append(question)
            used += len(question.ids)
    return pack_documents(documents, length, len(text.caption.ids) - 2, text.caption_group)


def pack(sample: Described, tokenizer: Tokenizer, length: int, first_question: int = 0) -> PackedText:
    """`tokenise` and `pack_tokenised` in one: a sample's caption and the questions that fit in `length` tokens."""
    return pack_tokenised(tokenise(sample, tokenizer, length), length, first_question)


def pack_question(question_text: str, answer: str, tokenizer: Tokenizer, length: int) -> PackedText:
    """One question with one of its options, alone: the targets are what option likelihood sums over.

    Raises DataError if they do not fit.
    """
    document = question_document(question_text, answer, tokenizer)
    if len(document.ids) > length:
        raise DataError(
            f"question {question_text!r} with answer {answer!r} is {len(document.ids)} tokens; "
            f"data.text_tokens is {length}: raise it or shorten the question"
        )
    return pack_documents([document], length, 0, caption_group(""))


def pack_documents(documents: Sequence[Document], length: int, caption_end: int, group: int) -> PackedText:
    """Lay documents one after another into `length` tokens; positions restart at 0 in each."""
    tokens = np.full(length, PAD, dtype=np.int64)
    targets = np.full(length, IGNORED, dtype=np.int64)
    numbers = np.full(length, PADDING_DOCUMENT, dtype=np.int64)
    positions = np.zeros(length, dtype=np.int64)
    at = 0
    for number, document in enumerate(documents):
        ids, first = document.ids, document.predicted_from
        end = at + len(ids)
        assert end <= length, f"documents need {end} tokens, there are {length}"
        tokens[at:end] = ids
        # The token at index i is predicted by the logits at i - 1.
        targets[at + first - 1 : end - 1] = ids[first:]
        numbers[at:end] = number
        positions[at:end] = np.arange(len(ids))
        at = end
    return PackedText(tokens, targets, numbers, positions, caption_end, group)


def caption_group(caption: str) -> int:
    """A stable number under 2**63, equal for captions that are equal but for case and outer spaces."""
    digest = hashlib.sha256(caption.strip().lower().encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def texts(samples: Iterable[Described]) -> Iterator[str]:
    """Every text that packing would encode, with all options: what a tokenizer learns from."""
    for sample in samples:
        yield sample.caption
        for question in sample.questions:
            yield question_prompt(question.text)
            yield from (f" {option}" for option in question.options)
