"""The families of acts: direction, order, before/after, count, faster, how long.

Every function takes a random generator, things of different colours and the room there is, and returns an Act: the same
key states in two orders that read differently. No single state tells the order, so a bag of frames cannot.
"""

from dataclasses import dataclass

import numpy as np

from xgenvideo.data.generate.story import BLANK, Act, Ask, Placed, State, Thing


@dataclass(frozen=True)
class Room:
    """Where an act may play. `upper`: only the upper part, as a bystander is below. `slow`: about twice the states."""

    upper: bool = False
    slow: bool = False


@dataclass(frozen=True)
class Lane:
    """A straight path: `at(u)` for u in 0..1 is a point on it. `ways`: what moving up u, and down u, is called."""

    horizontal: bool
    across: float
    start: float
    stop: float

    def at(self, thing: Thing, u: float) -> State:
        """The state with `thing` at the fraction u of the lane (u 0 is left or top)."""
        along = self.start + u * (self.stop - self.start)
        x, y = (along, self.across) if self.horizontal else (self.across, along)
        return (Placed(thing, round(x, 5), round(y, 5)),)

    @property
    def ends(self) -> tuple[str, str]:
        """Names of the two ends, u = 0 first."""
        return ("left", "right") if self.horizontal else ("top", "bottom")

    @property
    def ways(self) -> tuple[str, str]:
        """Movement towards u = 1, and towards u = 0."""
        return ("to the right", "to the left") if self.horizontal else ("down", "up")


def make_lane(rng: np.random.Generator, room: Room) -> Lane:
    """A lane across most of the frame: in the upper part and horizontal where a bystander is below."""
    horizontal = room.upper or bool(rng.random() < 0.5)
    across = rng.uniform(0.18, 0.4) if room.upper else rng.uniform(0.2, 0.8)
    return Lane(horizontal, float(across), float(rng.uniform(0.13, 0.2)), float(rng.uniform(0.8, 0.87)))


def make_track(rng: np.random.Generator, room: Room) -> Lane:
    """A horizontal lane over a fixed stretch, so that where a thing ends tells whether it came back."""
    across = rng.uniform(0.18, 0.4) if room.upper else rng.uniform(0.2, 0.8)
    return Lane(True, float(across), 0.15, 0.85)


def spot(rng: np.random.Generator, room: Room) -> tuple[float, float]:
    """A place well inside the room."""
    y = rng.uniform(0.18, 0.4) if room.upper else rng.uniform(0.2, 0.8)
    return round(float(rng.uniform(0.2, 0.8)), 5), round(float(y), 5)


def shown(thing: Thing, place: tuple[float, float], count: int) -> tuple[State, ...]:
    """`count` states with the thing standing at `place`."""
    return ((Placed(thing, *place),),) * count


def blank(count: int) -> tuple[State, ...]:
    """`count` states with nothing to see."""
    return (BLANK,) * count


def between(rng: np.random.Generator, low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    return int(rng.integers(low, high + 1))


def direction(rng: np.random.Generator, things: tuple[Thing, ...], room: Room) -> Act:
    """A thing goes along a lane, with rests at the ends, perhaps speeding up; the twin goes the other way."""
    thing, lane = things[0], make_lane(rng, room)
    steps = between(rng, 14, 24) if room.slow else between(rng, 7, 10)
    power = 2.5 if rng.random() < 0.15 else 1.0
    path = tuple(lane.at(thing, float(u)) for u in np.linspace(0, 1, steps) ** power)
    rests = (path[0],) * between(rng, 0, 2), (path[-1],) * between(rng, 0, 2)
    states = (*rests[0], *path, *rests[1])
    (low, high), (up, down), name = lane.ends, lane.ways, thing.name
    pattern = "{a} moves {way}"
    pace = (" and speeds up", " and slows down") if power > 1 else ("", "")
    clauses = (
        pattern.format(a=thing.a_name, way=up, here=low, there=high) + pace[0],
        pattern.format(a=thing.a_name, way=down, here=high, there=low) + pace[1],
    )
    asks = [
        Ask(f"Which way does {name} move?", up, down, "direction"),
        Ask(f"Where does {name} start?", f"at the {low}", f"at the {high}", "direction"),
        Ask(f"Where does {name} end?", f"at the {high}", f"at the {low}", "direction"),
    ]
    if power > 1:
        asks.append(Ask(f"When is {name} faster?", "at the end", "at the start", "faster"))
        asks.append(Ask(f"Does {name} speed up or slow down?", "it speeds up", "it slows down", "faster"))
    act = Act(states, states[::-1], clauses, tuple(asks), rests=True)
    return act if rng.random() < 0.5 else act.swapped()


def passage(rng: np.random.Generator, things: tuple[Thing, ...], room: Room) -> Act:
    """A thing enters the frame and stops inside; the twin starts inside and leaves."""
    thing, lane = things[0], make_lane(rng, room)
    inside = float(rng.uniform(0.45, 0.75))
    from_low = bool(rng.random() < 0.5)
    outside = -0.45
    fractions = np.linspace(outside, inside, between(rng, 14, 20) if room.slow else between(rng, 7, 9))
    path = tuple(lane.at(thing, float(u if from_low else 1 - u)) for u in fractions)
    states = path + (path[-1],) * between(rng, 1, 4)
    side = lane.ends[0] if from_low else lane.ends[1]
    ways = lane.ways if from_low else lane.ways[::-1]
    come, go = ("comes in", "goes out")
    clauses = (
        f"{thing.a_name} {come} at the {side} and stops",
        f"{thing.a_name} moves {ways[1]} and {go} at the {side}",
    )
    asks = (
        Ask(f"Does {thing.name} enter or leave?", "it enters", "it leaves", "direction"),
        Ask(f"Which way does {thing.name} move?", ways[0], ways[1], "direction"),
    )
    act = Act(states, states[::-1], clauses, asks, rests=True)
    return act if rng.random() < 0.5 else act.swapped()


def order(rng: np.random.Generator, things: tuple[Thing, ...], room: Room) -> Act:
    """One thing is there alone and vanishes, then another; the twin has them the other way round."""
    first, second = things[:2]
    low, high = (6, 12) if room.slow else (3, 5)
    states = (
        *shown(first, spot(rng, room), between(rng, low, high)),
        *blank(between(rng, 1, 2)),
        *shown(second, spot(rng, room), between(rng, low, high)),
    )
    pattern = "{x} appears before {y}"
    clauses = (pattern.format(x=first.a_name, y=second.a_name), pattern.format(x=second.a_name, y=first.a_name))
    asks = (
        Ask("What appears first?", first.name, second.name, "order", alone=True),
        Ask("What appears last?", second.name, first.name, "order", alone=True),
        Ask(f"Does {first.name} appear before or after {second.name}?", "before", "after", "order"),
        Ask(f"Does {second.name} come before or after {first.name}?", "after", "before", "order"),
    )
    return Act(states, states[::-1], clauses, asks)


def joining(rng: np.random.Generator, things: tuple[Thing, ...], room: Room) -> Act:
    """A thing is alone, then a second joins it; the twin has both, then the second vanishes."""
    host, guest = things[:2]
    y = spot(rng, room)[1]
    left, right = round(float(rng.uniform(0.18, 0.3)), 5), round(float(rng.uniform(0.68, 0.82)), 5)
    here, there = (left, right) if rng.random() < 0.5 else (right, left)
    low, high = (8, 14) if room.slow else (3, 6)
    alone = shown(host, (here, y), between(rng, low, high))
    both = ((Placed(host, here, y), Placed(guest, there, y)),) * between(rng, low, high)
    states = alone + both
    clauses = (
        f"{host.a_name} is alone, then {guest.a_name} appears beside it",
        f"{host.a_name} and {guest.a_name} are there, then {guest.name} vanishes",
    )
    asks = (
        Ask(f"Does {guest.name} appear or vanish?", "it appears", "it vanishes", "order"),
        Ask(f"When is {host.name} alone?", "at the start", "at the end", "order"),
    )
    act = Act(states, states[::-1], clauses, asks, rests=True)
    return act if rng.random() < 0.5 else act.swapped()


def collision(rng: np.random.Generator, things: tuple[Thing, ...], room: Room) -> Act:
    """A thing moves in and hits another, which moves off; reversed, the other comes back and hits the first."""
    hitter, target = things[:2]
    lane = make_lane(rng, room)
    touch = 0.5 - (hitter.size + target.size) / 2 / (lane.stop - lane.start)
    steps = between(rng, 8, 13) if room.slow else between(rng, 4, 6)
    flip = bool(rng.random() < 0.5)

    def both(u: float, v: float) -> State:
        u, v = (1 - u, 1 - v) if flip else (u, v)
        return lane.at(hitter, u) + lane.at(target, v)

    coming = tuple(both(float(u), 0.5) for u in np.linspace(-0.1, touch, steps))
    going = tuple(both(touch, float(v)) for v in np.linspace(0.5, 1.1, steps)[1:])
    states = coming + going
    ways = lane.ways[::-1] if flip else lane.ways
    pattern = "{x} moves {way} and hits {y}, and {y_name} moves on"
    clauses = (
        pattern.format(x=hitter.a_name, y=target.a_name, y_name=target.name, way=ways[0]),
        pattern.format(x=target.a_name, y=hitter.a_name, y_name=hitter.name, way=ways[1]),
    )
    asks = (
        Ask("What moves first?", hitter.name, target.name, "order", alone=True),
        Ask("What moves last?", target.name, hitter.name, "order", alone=True),
        Ask(f"Does {hitter.name} move before or after {target.name}?", "before", "after", "order"),
        Ask(f"Which way does {hitter.name} move?", *ways, "direction"),
    )
    return Act(states, states[::-1], clauses, asks, rests=True)


def before_after(rng: np.random.Generator, things: tuple[Thing, ...], room: Room) -> Act:
    """Three things one after another; the twin shows them in reverse."""
    first, middle, last = things[:3]
    low, high = (5, 9) if room.slow else (3, 5)
    states = shown(first, spot(rng, room), between(rng, low, high)) + blank(between(rng, 0, 1))
    states += shown(middle, spot(rng, room), between(rng, low, high)) + blank(between(rng, 0, 1))
    states += shown(last, spot(rng, room), between(rng, low, high))
    pattern = "{x} appears, then {y}, then {z}"
    clauses = (
        pattern.format(x=first.a_name, y=middle.a_name, z=last.a_name),
        pattern.format(x=last.a_name, y=middle.a_name, z=first.a_name),
    )
    asks = [
        Ask(f"What comes right after {middle.name}?", last.name, first.name, "before_after"),
        Ask(f"What comes right before {middle.name}?", first.name, last.name, "before_after"),
        Ask(f"Does {middle.name} come before or after {first.name}?", "after", "before", "before_after"),
        Ask(f"Does {last.name} come before or after {middle.name}?", "after", "before", "before_after"),
    ]
    return Act(states, states[::-1], clauses, tuple(asks))


def exchange(rng: np.random.Generator, things: tuple[Thing, ...], room: Room) -> Act:
    """Three things one after another; in the twin the last two change places."""
    first, second, third = things[:3]
    low, high = (5, 7) if room.slow else (3, 4)
    stay = between(rng, low, high)
    opening = shown(first, spot(rng, room), between(rng, low, high) + 2) + blank(1)
    one, two = shown(second, spot(rng, room), stay) + blank(1), shown(third, spot(rng, room), stay) + blank(1)
    pattern = "{x} appears, then {y}, then {z}"
    clauses = (
        pattern.format(x=first.a_name, y=second.a_name, z=third.a_name),
        pattern.format(x=first.a_name, y=third.a_name, z=second.a_name),
    )
    asks = (
        Ask(f"What comes right after {first.name}?", second.name, third.name, "before_after"),
        Ask("What comes last?", third.name, second.name, "before_after", alone=True),
        Ask(f"Does {second.name} come before or after {third.name}?", "before", "after", "before_after"),
    )
    return Act(opening + one + two, opening + two + one, clauses, asks)
