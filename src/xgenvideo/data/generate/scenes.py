"""Twin scenes from a seed: one or two acts, padded so that the middle frame is the same picture in both twins."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from xgenvideo.data.generate import acts, timing
from xgenvideo.data.generate.acts import Room, between, blank
from xgenvideo.data.generate.story import (
    COLOURS,
    SHAPES,
    Act,
    Ask,
    Background,
    Placed,
    Scene,
    State,
    Thing,
    pick,
)
from xgenvideo.records import Question

MIN_STATES, MAX_STATES = 16, 64  # 8 to 32 seconds at two key states a second
SHORT_STATES = 24
LONG_SHARE = 0.02

ActMaker = Callable[[np.random.Generator, tuple[Thing, ...], Room], Act]


@dataclass(frozen=True)
class Family:
    """An act with the number of things it needs, how often it is drawn, and whether a bystander may look on."""

    make: ActMaker
    things: int
    weight: float
    watched: bool = True


# Six plain families make up nearly all, so that a few hundred scenes show each kind of question often enough to learn.
ALONE = (
    Family(acts.direction, 1, 1.3),
    Family(acts.order, 2, 0.8),
    Family(acts.exchange, 3, 1.4),
    Family(timing.count, 1, 0.6),
    Family(timing.faster, 2, 1.5),
    Family(timing.gap, 2, 0.6),
    Family(acts.passage, 1, 0.04),
    Family(acts.joining, 2, 0.04, watched=False),
    Family(acts.collision, 2, 0.04),
    Family(acts.before_after, 3, 0.04),
    Family(timing.turns, 1, 0.04),
    Family(timing.stay, 1, 0.04),
)
PAIRED = (
    Family(acts.direction, 1, 1.0),
    Family(acts.passage, 1, 0.5),
    Family(acts.order, 2, 0.6),
    Family(acts.collision, 2, 0.5),
    Family(timing.count, 1, 0.8),
    Family(timing.turns, 1, 0.5),
    Family(timing.stay, 1, 0.4),
)


def make_twins(seed: int, index: int) -> tuple[Scene, Scene]:
    """Scene number `index` of `seed` and its twin: the same key states in another order, and what is then to be seen.

    The two have the same background, the same number of states, the same middle state and the same questions with
    the same options; every right answer differs.
    """
    rng = np.random.default_rng([seed, index])
    room_states = MAX_STATES if rng.random() < LONG_SHARE else SHORT_STATES - 1
    for _ in range(1000):
        act = _draw_act(rng, room_states > SHORT_STATES)
        padded = _pad(rng, act, room_states)
        if padded is not None:
            return _scenes(rng, padded)
    raise AssertionError(f"seed {seed} scene {index}: no scene fits {room_states} states in 1000 draws")


def _draw_act(rng: np.random.Generator, long: bool) -> Act:
    """One act, or two joined, perhaps with a bystander that never moves."""
    two = bool(rng.random() < (0.5 if long else 0.03))
    families = [_draw_family(rng, PAIRED), _draw_family(rng, PAIRED)] if two else [_draw_family(rng, ALONE)]
    needed = sum(family.things for family in families)
    watched = needed <= 2 and all(family.watched for family in families)
    bystander = watched and bool(rng.random() < 0.04)
    room = Room(upper=bystander, slow=long)
    things = _draw_things(rng, 3 if needed <= 3 else needed)
    made = []
    for family in families:
        made.append(family.make(rng, things[: family.things], room))
        things = things[family.things :] + things[: family.things]
    act = made[0] if len(made) == 1 else _join(rng, made[0], made[1])
    return _stand_by(rng, act, things[0]) if bystander else act


def _draw_family(rng: np.random.Generator, families: tuple[Family, ...]) -> Family:
    weights = np.array([family.weight for family in families])
    return families[int(rng.choice(len(families), p=weights / weights.sum()))]


def _draw_things(rng: np.random.Generator, count: int) -> tuple[Thing, ...]:
    """`count` things of different colours, each about a quarter of the frame wide."""
    colours = rng.permutation(list(COLOURS))[:count].tolist()
    return tuple(Thing(str(colour), pick(rng, SHAPES), round(float(rng.uniform(0.22, 0.3)), 3)) for colour in colours)


def _join(rng: np.random.Generator, one: Act, two: Act) -> Act:
    """Two acts, one after the other. Where both only reverse, the twin may reverse the whole, and their order too."""
    pause = blank(between(rng, 1, 3))
    pattern = "{x}. Then {y}"
    states = one.states + pause + two.states
    one_asks, two_asks = (tuple(ask for ask in act.asks if not ask.alone) for act in (one, two))
    first, second = _lead(one), _lead(two)
    if one.reverses and two.reverses and rng.random() < 0.5:
        clauses = (
            pattern.format(x=one.clauses[0], y=two.clauses[0]),
            pattern.format(x=two.clauses[1], y=one.clauses[1]),
        )
        asks = (
            one_asks[:2]
            + two_asks[:1]
            + (Ask(f"Does {first} come before or after {second}?", "before", "after", "order"),)
        )
        return Act(states, states[::-1], clauses, asks)
    clauses = (
        pattern.format(x=one.clauses[0], y=two.clauses[0]),
        pattern.format(x=one.clauses[1], y=two.clauses[1]),
    )
    return Act(states, one.twin + pause + two.twin, clauses, one_asks[:2] + two_asks[:2])


def _lead(act: Act) -> str:
    """Name of a thing of the act."""
    return next(state[0].thing.name for state in act.states if state)


def _stand_by(rng: np.random.Generator, act: Act, thing: Thing) -> Act:
    """The act with `thing` standing below all the time."""
    place = Placed(thing, round(float(rng.uniform(0.2, 0.8)), 5), round(float(rng.uniform(0.75, 0.8)), 5))
    pattern = "{x} while {y} stays still below"

    def add(states: tuple[State, ...]) -> tuple[State, ...]:
        return tuple((*state, place) for state in states)

    clauses = (
        pattern.format(x=act.clauses[0], y=thing.a_name),
        pattern.format(x=act.clauses[1], y=thing.a_name),
    )
    return Act(add(act.states), add(act.twin), clauses, act.asks, act.rests)


def _pad(rng: np.random.Generator, act: Act, most: int) -> Act | None:
    """The act in an odd number of states, led in and out by rests, with one and the same middle state in both orders.

    None where that cannot be done in `most` states: a model that sees one frame must know nothing.
    """
    length = len(act.states)
    alike = [p for p in range(length) if act.states[p] == act.twin[p]]
    fits = []
    for point in alike:
        lead, tail = max(0, length - 1 - 2 * point), max(0, 2 * point + 1 - length)
        if length + lead + tail <= most:
            fits.append((lead, tail))
    if not fits:
        return None
    shortest = min(sum(fit) for fit in fits)
    lead, tail = pick(rng, [fit for fit in fits if sum(fit) <= shortest + 3])
    spare = (most - length - lead - tail) // 2
    least = max(0, -(-(MIN_STATES - length - lead - tail) // 2))
    more = min(spare, least + between(rng, 0, 2))
    return _around(act, lead + more, tail + more)


def _around(act: Act, lead: int, tail: int) -> Act:
    """The act with `lead` and `tail` more states: its own ends where it rests, else what all its states have."""
    if act.rests and act.reverses and lead == tail:
        states = (act.states[0],) * lead + act.states + (act.states[-1],) * tail
        return Act(states, states[::-1], act.clauses, act.asks)
    always = tuple(placed for placed in act.states[0] if all(placed in state for state in act.states))
    before, after = (always,) * lead, (always,) * tail
    return Act(before + act.states + after, before + act.twin + after, act.clauses, act.asks)


def _scenes(rng: np.random.Generator, act: Act) -> tuple[Scene, Scene]:
    """The two scenes of an act, in random order, with at most four questions in random order of options."""
    act = act if rng.random() < 0.5 else act.swapped()
    background = draw_background(rng)
    first, second = [], []
    for position in sorted(rng.permutation(len(act.asks))[:4].tolist()):
        ask = act.asks[position]
        options = (ask.answer, ask.twin_answer) if rng.random() < 0.5 else (ask.twin_answer, ask.answer)
        first.append(Question(ask.text, options, options.index(ask.answer), ask.kind))
        second.append(Question(ask.text, options, options.index(ask.twin_answer), ask.kind))
    return (
        Scene(background, act.states, _sentence(act.clauses[0]), tuple(first)),
        Scene(background, act.twin, _sentence(act.clauses[1]), tuple(second)),
    )


def _sentence(clause: str) -> str:
    """Clauses as sentences: capitals at their starts and a full stop."""
    return ". ".join(part[0].upper() + part[1:] for part in clause.split(". ")) + "."


def draw_background(rng: np.random.Generator) -> Background:
    """A muted ground: grey, beige or dark, never one of the colours that captions name."""
    base = rng.uniform(40, 200)
    tint = np.array(pick(rng, ((0, 0, 0), (6, 0, -8), (12, 4, -10), (-6, 0, 6), (4, 3, -4))), dtype=float)
    spread = rng.uniform(10, 30)
    light, dark = np.clip([base + spread + tint, base - spread + tint], 8, 245).round().astype(int).tolist()
    return Background(tuple(light), tuple(dark), round(float(rng.uniform(0, 2 * np.pi)), 4), int(rng.integers(2**31)))
