"""einops' `rearrange` and `repeat` as far as the model uses them: released code needs torch and transformers alone."""

import math
import re

from torch import Tensor


def rearrange(x: Tensor, pattern: str, **sizes: int) -> Tensor:
    """Split, move and join axes as `pattern` says; sizes of axes that the left side splits, all but one a group."""
    given, wanted = (_groups(side) for side in pattern.split("->"))
    known = dict(sizes)
    for group, size in zip(given, x.shape, strict=True):
        unknown = [name for name in group if name not in known]
        rest = size // math.prod(known[name] for name in group if name in known)
        known.update(dict.fromkeys(unknown, rest))
    names = [name for group in given for name in group]
    order = [names.index(name) for group in wanted for name in group]
    x = x.reshape([known[name] for name in names]).permute(order)
    return x.reshape([math.prod(known[name] for name in group) for group in wanted])


def repeat(x: Tensor, pattern: str, **sizes: int) -> Tensor:
    """As `rearrange`, with new axes on the right side, along which the values repeat."""
    given, wanted = pattern.split("->")
    new = [name for group in _groups(wanted) for name in group if name not in {n for g in _groups(given) for n in g}]
    x = x.expand(*(sizes[name] for name in new), *x.shape)
    return rearrange(x, f"{' '.join(new)} {given}->{wanted}", **sizes)


def _groups(side: str) -> list[list[str]]:
    """The axes of a side, each as the names that it joins; 1 is an axis without a name."""
    found = re.findall(r"\(([^)]*)\)|(\w+)", side)
    return [[name for name in (inner or single).split() if name != "1"] for inner, single in found]
