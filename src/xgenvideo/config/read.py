"""Reading configs: from JSON, and with `section.field=value` overrides; every wrong key or type is named."""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any

from xgenvideo.config.check import check
from xgenvideo.config.sections import RunConfig
from xgenvideo.errors import ConfigError


def from_dict(values: dict[str, Any], cls: type[Any] = RunConfig, prefix: str = "") -> Any:
    """Build a config dataclass from nested dicts. Raises ConfigError for an unknown or missing key or a wrong type."""
    hints = typing.get_type_hints(cls)
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(prefix + key, value, "no such setting", sorted(hints))
    arguments: dict[str, Any] = {}
    for spec in dataclasses.fields(cls):
        name = prefix + spec.name
        if spec.name not in values:
            if spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
                raise ConfigError(name, None, "is missing")
            continue
        value, hint = values[spec.name], hints[spec.name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, dict):
                raise ConfigError(name, value, "must be a section (a JSON object)")
            arguments[spec.name] = from_dict(value, typing.cast(type[Any], hint), name + ".")
        else:
            arguments[spec.name] = _typed(name, value, hint)
    return cls(**arguments)


def load(path: Path) -> RunConfig:
    """Read a config that `RunConfig.save` wrote, and check it. Raises ConfigError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("config", str(path), f"cannot be read as JSON ({error})") from error
    config: RunConfig = from_dict(values)
    check(config)
    return config


def override(config: RunConfig, assignments: list[str]) -> RunConfig:
    """Apply `section.field=value` overrides, then check. Raises ConfigError naming the setting and the valid ones."""
    values = dataclasses.asdict(config)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(name, "", "an override is written section.field=value")
        _set(values, name, text)
    changed: RunConfig = from_dict(values)
    check(changed)
    return changed


def _set(values: dict[str, Any], name: str, text: str) -> None:
    """Put the parsed `text` at the dotted `name` of nested dicts."""
    *sections, last = name.split(".")
    place = values
    for depth, section in enumerate(sections):
        found = place.get(section)
        if not isinstance(found, dict):
            raise ConfigError(".".join(sections[: depth + 1]), text, "no such section", _sections(place))
        place = found
    if last not in place:
        raise ConfigError(name, text, "no such setting", sorted(place))
    if isinstance(place[last], dict):
        raise ConfigError(name, text, "is a section; set one of its fields", sorted(place[last]))
    place[last] = _parsed(text, place[last])


def _sections(place: dict[str, Any]) -> list[str]:
    return sorted(key for key, value in place.items() if isinstance(value, dict))


def _parsed(text: str, current: object) -> Any:
    """`text` as JSON where that gives something, otherwise as the string it is."""
    if isinstance(current, str):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _typed(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint`, or ConfigError. An int is accepted for a float; a bool never for a number."""
    allowed = hint.__args__ if isinstance(hint, types.UnionType) else (hint,)
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if int in allowed and isinstance(value, float) and value.is_integer():
        return int(value)
    for kind in allowed:
        if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
            return value
    rule = f"must be of type {' or '.join(kind.__name__ for kind in allowed)}"
    raise ConfigError(name, value, rule, ("true", "false") if bool in allowed else ())
