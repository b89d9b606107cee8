"""Checks YAML from elsewhere before a loader turns it into objects.

A few lines with aliases can stand for more values than fit into memory, and brackets can be nested
deeper than a parser's stack. Both show in the text's events, which need almost no memory.
"""

from __future__ import annotations

from pathlib import Path

import yaml

MAX_BYTES = 1 << 24
"""Largest file in bytes, and most characters and values that its aliases may expand to."""
MAX_DEPTH = 100
"""Most levels of nested collections."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlLimitError(yaml.YAMLError):
    """A YAML file that is not worth loading; the message says what is accepted."""


def read_yaml_text(path: Path) -> str:
    """Read a YAML file and make sure that loading it takes bounded memory and stack.

    Raises
    ------
    OSError, UnicodeDecodeError
        The file cannot be read.
    yaml.YAMLError
        It is not YAML, or exceeds a limit (`YamlLimitError`).
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise YamlLimitError(f"it has {size} bytes; accepted: up to {MAX_BYTES}")
    text = path.read_text(encoding="utf-8")
    _check(text)
    return text


def load_yaml(path: Path) -> object:
    """Load a YAML file into plain values, within the limits of `read_yaml_text`; raises as it does.

    If a value does not fit its tag, such as a date in month 13 or ``!!int ""``, the loader's error
    is raised as a `yaml.YAMLError`.
    """
    text = read_yaml_text(path)
    loader = _LOADER(text)  # the one that the limits were checked with
    try:
        return loader.get_single_data()
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise yaml.YAMLError(f"a value in it is not of its kind: {error}") from error
    finally:
        loader.dispose()


def _check(text: str) -> None:
    extent = _Extent()
    for event in yaml.parse(text, Loader=_LOADER):
        extent.add(event)


class _Extent:
    """Adds up, event by event, how much a text stands for."""

    def __init__(self) -> None:
        self._total = 0
        # Size of what each anchor stands for, including the aliases in it.
        self._sizes: dict[str, int] = {}
        self._open: list[tuple[str | None, int]] = []

    def add(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.AliasEvent):
            self._total += self._size_of(event.anchor)
        elif isinstance(event, yaml.ScalarEvent):
            self._total += 1 + len(event.value)
            self._keep(event.anchor, 1 + len(event.value))
        elif isinstance(event, yaml.CollectionStartEvent):
            self._open.append((event.anchor, self._total))
            self._total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = self._open.pop()
            self._keep(anchor, self._total - before)
        if len(self._open) > MAX_DEPTH:
            raise YamlLimitError(
                f"its collections are nested deeper than {MAX_DEPTH}; accepted: up to that"
            )
        if self._total > MAX_BYTES:
            raise YamlLimitError(
                f"its aliases make more of it than {MAX_BYTES} characters and values; accepted: up "
                "to that; write it out without aliases"
            )

    def _keep(self, anchor: str | None, size: int) -> None:
        if anchor is not None:
            self._sizes[anchor] = size

    def _size_of(self, anchor: str | None) -> int:
        if anchor is None or anchor not in self._sizes:
            raise YamlLimitError(
                f"the alias *{anchor} stands for nothing, or for what it is in; accepted: aliases "
                "of what came before"
            )
        return self._sizes[anchor]
