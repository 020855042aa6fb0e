"""What a generated scene is made of: things, key states (one every half second), acts and scenes. No pixels here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from xgenvideo.records import Question

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "green": (30, 160, 50),
    "blue": (30, 65, 225),
    "yellow": (248, 226, 30),
    "purple": (128, 30, 165),
    "cyan": (20, 215, 225),
}
SHAPES = ("circle", "square", "triangle", "ring")
KINDS = ("direction", "order", "before_after", "count", "faster", "how_long")

Choice = TypeVar("Choice")


def pick(rng: np.random.Generator, choices: Sequence[Choice]) -> Choice:
    """One of `choices`, all equally likely."""
    return choices[int(rng.integers(len(choices)))]


@dataclass(frozen=True)
class Thing:
    """A coloured shape; `size` is its width as a fraction of the frame's."""

    colour: str
    shape: str
    size: float

    @property
    def name(self) -> str:
        """As a question names it: "the red circle"."""
        return f"the {self.colour} {self.shape}"

    @property
    def a_name(self) -> str:
        """As a caption brings it in: "a red circle"."""
        return f"a {self.colour} {self.shape}"


@dataclass(frozen=True)
class Placed:
    """A thing at a place; x and y are fractions of the frame, outside 0..1 when it is out of sight."""

    thing: Thing
    x: float
    y: float


State = tuple[Placed, ...]
BLANK: State = ()


@dataclass(frozen=True)
class Ask:
    """A question whose right answer is `answer` in the first order of the states and `twin_answer` in the other.

    `alone`: it asks about the whole clip ("What appears first?") and is unclear once another act is joined on.
    """

    text: str
    answer: str
    twin_answer: str
    kind: str
    alone: bool = False


@dataclass(frozen=True)
class Act:
    """Key states in two orders, with what each order shows. `clauses`: (of `states`, of `twin`).

    `rests`: it may be led in and out by its own first and last state, not only by an empty ground.
    """

    states: tuple[State, ...]
    twin: tuple[State, ...]
    clauses: tuple[str, str]
    asks: tuple[Ask, ...]
    rests: bool = False

    @property
    def reverses(self) -> bool:
        """Whether the twin is the plain reversal, so that two such acts can be reversed together."""
        return self.twin == self.states[::-1]

    def swapped(self) -> "Act":
        """The same act with its two orders exchanged."""
        asks = tuple(Ask(ask.text, ask.twin_answer, ask.answer, ask.kind, ask.alone) for ask in self.asks)
        return Act(self.twin, self.states, (self.clauses[1], self.clauses[0]), asks, self.rests)


@dataclass(frozen=True)
class Background:
    """A muted ground: two greyish tones (RGB) blended along `angle` (radians), with a faint texture from `seed`."""

    light: tuple[int, int, int]
    dark: tuple[int, int, int]
    angle: float
    seed: int


@dataclass(frozen=True)
class Scene:
    """One clip to draw: a key state every half second, its caption and its questions."""

    background: Background
    states: tuple[State, ...]
    caption: str
    questions: tuple[Question, ...]

    @property
    def seconds(self) -> float:
        """Length of the clip."""
        return len(self.states) / 2

    @property
    def colours(self) -> frozenset[str]:
        """Names of all colours to be seen."""
        return frozenset(placed.thing.colour for state in self.states for placed in state)
