"""Writes requirements.lock: every package that xgenvideo and its extras need, at the versions of this environment.

Run it with `make lock` after a change of dependencies. Only the closure of pyproject.toml is written, so what else is
installed in the environment does not slip in.
"""

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Extras for accounts and hosts elsewhere and for GPUs: nothing here needs them, and tests of them are skipped without.
UNLOCKED = ("energy", "remote", "wandb")
ROOT = Path(__file__).parent.parent
HEADER = """\
# All packages that xgenvideo and its extras need, for Python 3.11. Written by `make lock`; do not edit.
# torch has no local version here, so that the CPU or the CUDA build is taken as the machine offers.
"""


def closure(requirements: list[str]) -> dict[str, str]:
    """Name to exact version of everything that `requirements` need here. Raises PackageNotFoundError."""
    pinned: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [Requirement(text) for text in requirements]
    while todo:
        requirement = todo.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        package = distribution(requirement.name)
        pinned[name] = re.sub(r"\+.*", "", package.version)
        for text in package.requires or []:
            need = Requirement(text)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras or {""}):
                todo.append(need)
    return pinned


def main() -> int:
    """Write the lock file; says what is missing instead of writing half of it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["build-system"]["requires"], "editables", *project["project"]["dependencies"]]
    for name, extra in project["project"]["optional-dependencies"].items():
        wanted += extra if name not in UNLOCKED else []
    try:
        pinned = closure(wanted)
    except PackageNotFoundError as error:
        print(f"requirements.lock was not written: {error} is not installed here", file=sys.stderr)
        return 1
    lines = [f"{name}=={version}" for name, version in sorted(pinned.items())]
    (ROOT / "requirements.lock").write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"requirements.lock: {len(lines)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
