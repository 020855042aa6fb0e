"""A byte-level BPE tokenizer: any text encodes, nothing in a text can turn into a special token."""

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from xgenvideo.errors import ConfigError, DataError

PAD, BOS, EOS, CAPTION_END = range(4)
SPECIALS = ("<|pad|>", "<|bos|>", "<|eos|>", "<|endofcaption|>")
BYTES = 256


class Tokenizer:
    """Text to ids and back. The ids 0 to 3 are the special tokens, in the order of SPECIALS."""

    def __init__(self, engine: tokenizers.Tokenizer) -> None:
        found = tuple(engine.id_to_token(number) for number in range(len(SPECIALS)))
        if found != SPECIALS:
            raise DataError(f"not a tokenizer of this program: the first tokens are {found}, not {SPECIALS}")
        # A caption that spells "<|eos|>" must stay a caption; this setting is not saved in the file.
        engine.encode_special_tokens = True
        self._engine = engine

    @property
    def size(self) -> int:
        """Ids in use; the model's vocabulary may have more rows."""
        return self._engine.get_vocab_size()

    def ids(self) -> Iterable[int]:
        """Every id that has a token."""
        return self._engine.get_vocab().values()

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without any special token."""
        ids: list[int] = self._engine.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; special tokens are left out, ids beyond the vocabulary give nothing."""
        return self._engine.decode([int(number) for number in ids], skip_special_tokens=True)

    def to_json(self) -> str:
        """The file that `load` and Hugging Face's libraries read."""
        return self._engine.to_str(pretty=True)

    def save(self, path: Path) -> None:
        """Write as JSON: temporary name, fsync, rename."""
        path = Path(path)
        temporary = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(self.to_json())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def __repr__(self) -> str:
        return f"Tokenizer(size={self.size})"


def load(path: Path) -> Tokenizer:
    """Read what `Tokenizer.save` wrote. Raises DataError."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no tokenizer can be read here ({error}); `xgv curate` writes one") from error
    try:
        engine = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{path}: is not a tokenizer file ({error}); curate again") from error
    return Tokenizer(engine)


def train_tokenizer(texts: Iterable[str], vocab: int) -> Tokenizer:
    """Learn at most `vocab` ids from texts; the same texts in any order give the same tokenizer. They are not held.

    Raises ConfigError for a vocabulary too small for the bytes and the special tokens.
    """
    smallest = BYTES + len(SPECIALS)
    if vocab < smallest:
        raise ConfigError(
            "model.decoder.vocab", vocab, f"must be at least {smallest} (256 bytes and the special tokens)"
        )
    engine = tokenizers.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=2,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(texts, trainer)
    return Tokenizer(engine)
