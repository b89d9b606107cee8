"""Dataclasses of settings: checked values, and how they are made from JSON or YAML."""

from __future__ import annotations

import dataclasses
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints


class ConfigError(ValueError):
    """A configuration value that is not accepted; the message names it and what is accepted."""


def require(
    condition: bool,  # noqa: FBT001  # reads as an assertion
    name: str,
    value: object,
    accepted: str,
) -> None:
    """Raise `ConfigError`, naming the value and what is accepted, unless the condition holds."""
    if not condition:
        raise ConfigError(f"{name} is {value!r}; accepted: {accepted}")


def require_least(config: object, section: str, least: int, *names: str) -> None:
    """Raise `ConfigError` unless the numbers in all these fields are `least` or more."""
    for name in names:
        value = getattr(config, name)
        require(value >= least, f"{section}.{name}", value, f"{least} or more")


def require_share(config: object, section: str, *names: str) -> None:
    """Raise `ConfigError` unless the numbers in all these fields are from 0 to 1."""
    for name in names:
        value = getattr(config, name)
        require(0.0 <= value <= 1.0, f"{section}.{name}", value, "0 to 1")


def require_choice(name: str, value: str, choices: object) -> None:
    """Raise `ConfigError` unless a value is among those of a `Literal`."""
    accepted = get_args(choices)
    require(value in accepted, name, value, ", ".join(accepted))


T = TypeVar("T")


def dataclass_from(cls: type[T], values: object, where: str) -> T:
    """Build a dataclass from plain JSON or YAML values, nested ones included; lists become tuples.

    Raises
    ------
    ConfigError
        A key is unknown or missing, or a value has the wrong type or is refused by the dataclass.
        The message calls the place `where`.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where} is {values!r}; accepted: a mapping of {cls.__name__}'s fields")
    hints = get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f"{where} has unknown keys {unknown}; accepted: {sorted(hints)}")
    missing = [
        field.name
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if field.name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where} lacks the keys {missing}; add them")
    arguments = {key: _value(value, hints[key], f"{where}.{key}") for key, value in values.items()}
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


_WHOLE = 1 << 63
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _value(value: object, hint: Any, where: str) -> Any:
    """Convert one JSON or YAML value to a field's type; a value of another type is an error."""
    if NoneType in get_args(hint):  # a section that may be left out: Section | None
        if value is None:
            return None
        hint = get_args(hint)[0]
    if dataclasses.is_dataclass(hint):
        return dataclass_from(hint, value, where)  # type: ignore[arg-type]
    origin, inner = get_origin(hint), get_args(hint)
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = (inner[0],) * len(value) if inner[-1] is Ellipsis else inner
        require(len(value) == len(kinds), where, value, f"a list of {len(kinds)}")
        pairs = zip(value, kinds, strict=True)
        return tuple(_value(part, kind, f"{where}[{i}]") for i, (part, kind) in enumerate(pairs))
    if origin is tuple:
        accepted, fits = "a list", False
    elif origin is Literal:
        accepted, fits = ", ".join(inner), value in inner
    else:
        # bool is a subclass of int, and a whole number is a number.
        fits = type(value) is hint or (hint is float and type(value) is int)
        accepted = _KINDS[hint]
        if type(value) is int and not -_WHOLE <= value < _WHOLE:
            # Python refuses to print very long integers, and every message would print this one.
            raise ConfigError(f"{where} is a number of more than 64 bits; accepted: {accepted}")
    require(fits, where, value, accepted)
    return value
