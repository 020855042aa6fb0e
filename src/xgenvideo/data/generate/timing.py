"""Acts about how often, how fast and how long: the same key states in another order, rarely a plain reversal."""

import numpy as np

from xgenvideo.data.generate.acts import Lane, Room, between, blank, make_lane, make_track, shown, spot
from xgenvideo.data.generate.story import Act, Ask, State, Thing, pick

TIMES = {1: "once", 2: "twice", 3: "three times"}


def count(rng: np.random.Generator, things: tuple[Thing, ...], room: Room) -> Act:
    """A thing shows up once for long, or twice for half as long each time (or twice and three times)."""
    thing, place = things[0], spot(rng, room)
    few, many = (2, 3) if rng.random() < 0.04 else (1, 2)
    stay = between(rng, 4, 5) if room.slow and many == 2 else 3 if many == 2 else 2
    gap = 3 if many == 2 else 2
    shots = {times: shown(thing, place, stay * few * many // times) for times in (few, many)}
    nothing = blank(gap)
    fewer = shots[few] + (nothing + shots[few]) * (few - 1)
    more = shots[many] + (nothing + shots[many]) * (many - 1)
    spare = blank((many - few) * gap)
    fewer = fewer + spare if rng.random() < 0.5 else spare + fewer
    verb = "appears"
    clauses = (f"{thing.a_name} {verb} {TIMES[few]}", f"{thing.a_name} {verb} {TIMES[many]}")
    text = f"How many times does {thing.name} appear?"
    asks = [Ask(text, TIMES[few], TIMES[many], "count")]
    back = f"Does {thing.name} come back?" if few == 1 else f"Does {thing.name} appear a third time?"
    asks.append(Ask(back, "no", "yes", "count"))
    act = Act(fewer, more, clauses, tuple(asks))
    return act if rng.random() < 0.5 else act.swapped()


def sweep_and_return(lane: Lane, thing: Thing, reach: int, flip: bool) -> tuple[tuple[State, ...], tuple[State, ...]]:
    """One slow sweep over 2 reach + 1 points, and the same points there and back by every second one."""
    points = tuple(lane.at(thing, 1 - u if flip else u) for u in np.linspace(0, 1, 2 * reach + 1).tolist())
    return points, points[::2] + points[1::2][::-1]


def turns(rng: np.random.Generator, things: tuple[Thing, ...], room: Room) -> Act:
    """A thing crosses once, or goes there and back through the same points."""
    thing, lane = things[0], make_lane(rng, room)
    flip = bool(rng.random() < 0.5)
    # 3 reach + 1 in the middle: there the two orders pass the same point, so that the middle frame tells nothing.
    sweep, back = sweep_and_return(lane, thing, pick(rng, (8, 11)) if room.slow else 5, flip)
    way = lane.ways[1] if flip else lane.ways[0]
    patterns = ("{a} moves {way} once without turning", "{a} moves {way} and comes back")
    clauses = (patterns[0].format(a=thing.a_name, way=way), patterns[1].format(a=thing.a_name, way=way))
    asks = (
        Ask(f"How many times does {thing.name} turn around?", "never", "once", "count"),
        Ask(f"Does {thing.name} come back?", "no", "yes", "count"),
    )
    act = Act(sweep, back, clauses, asks)
    return act if rng.random() < 0.5 else act.swapped()


def faster(rng: np.random.Generator, things: tuple[Thing, ...], room: Room) -> Act:
    """One thing crosses slowly, another goes there and back in the same time; the twin swaps who is fast."""
    first, second = things[:2]
    reach = pick(rng, (6, 7)) if room.slow else 4
    slow_first, fast_first = sweep_and_return(make_track(rng, room), first, reach, flip=False)
    slow_second, fast_second = sweep_and_return(make_track(rng, room), second, reach, flip=False)
    gap = blank(2)
    patterns = ("{x} moves slowly, then {y} moves fast and back", "{x} moves fast and back, then {y} moves slowly")
    clauses = (
        patterns[0].format(x=first.a_name, y=second.a_name),
        patterns[1].format(x=first.a_name, y=second.a_name),
    )
    asks = [
        Ask("Which moves faster?", second.name, first.name, "faster"),
        Ask("Which moves slower?", first.name, second.name, "faster"),
        Ask("Which turns around?", second.name, first.name, "faster"),
        Ask(f"Is {first.name} slow or fast?", "slow", "fast", "faster"),
    ]
    kept = tuple(asks[i] for i in sorted(rng.permutation(len(asks))[:3].tolist()))
    act = Act(slow_first + gap + fast_second, fast_first + gap + slow_second, clauses, kept)
    return act if rng.random() < 0.5 else act.swapped()


def gap(rng: np.random.Generator, things: tuple[Thing, ...], room: Room) -> Act:
    """A long wait before one thing and a short one elsewhere; the twin swaps the two waits."""
    first, second = things[:2]
    seconds = 4
    short, long = blank(2), blank(2 * seconds)
    one, two = shown(first, spot(rng, room), 3), shown(second, spot(rng, room), 3)
    last = shown(things[2], spot(rng, room), 3) if len(things) > 2 and room.slow else ()
    patterns = ("{x} appears, and soon after it {y}", "{x} appears, and after a long gap {y}")
    end = f", then {things[2].a_name}" if last else ""
    names = {"x": first.a_name, "y": second.a_name}
    clauses = (patterns[0].format(**names) + end, patterns[1].format(**names) + end)
    lengths = ("about 1 second", f"about {seconds} seconds")
    text = f"How long is the gap before {second.name}?"
    asks = (
        Ask(text, *lengths, "how_long"),
        Ask(f"Is the gap before {second.name} short or long?", "short", "long", "how_long"),
    )
    act = Act(one + short + two + long + last, one + long + two + short + last, clauses, asks)
    return act if rng.random() < 0.5 else act.swapped()


def stay(rng: np.random.Generator, things: tuple[Thing, ...], room: Room) -> Act:
    """A thing is there twice, once for short and once for long; the twin is the reversal."""
    thing, place = things[0], spot(rng, room)
    seconds = pick(rng, (6, 7)) if room.slow else pick(rng, (4, 5))
    states = shown(thing, place, 2) + blank(between(rng, 2, 4)) + shown(thing, place, 2 * seconds)
    patterns = (
        "{a} appears for a short time, then again for a long time",
        "{a} appears for a long time, then again for a short time",
    )
    clauses = (patterns[0].format(a=thing.a_name), patterns[1].format(a=thing.a_name))
    lengths = ("about 1 second", f"about {seconds} seconds")
    asks = (
        Ask(f"How long does {thing.name} stay the first time?", *lengths, "how_long"),
        Ask(f"How long does {thing.name} stay the last time?", *lengths[::-1], "how_long"),
        Ask(f"When does {thing.name} stay longer?", "the last time", "the first time", "how_long"),
    )
    act = Act(states, states[::-1], clauses, asks)
    return act if rng.random() < 0.5 else act.swapped()
