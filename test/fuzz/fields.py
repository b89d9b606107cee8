"""Structure out of a fuzzer's bytes: numbers, choices and texts, read from the front.

The same bytes always give the same structure, with no library in between, so that a kept seed means
the same for ever. Where the bytes end, zeros follow.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any


class Fields:
    """Reads a fuzzer's bytes from the front."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken.ljust(count, b"\0")

    def rest(self) -> bytes:
        """Everything that is left."""
        taken = self._data[self._at :]
        self._at = len(self._data)
        return taken

    def left(self) -> int:
        return max(len(self._data) - self._at, 0)

    def byte(self) -> int:
        return self.take(1)[0]

    def flag(self) -> bool:
        return self.byte() % 2 == 1

    def unpack(self, layout: str) -> Any:
        """One number, as `struct` calls it, such as "<d"."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def number(self, layout: str = "<I") -> int:
        """A small number from one byte, or now and then one of the whole range of `layout`."""
        first = self.byte()
        return first if first < 240 else self.unpack(layout)

    def choice(self, options: Sequence[Any]) -> Any:
        return options[self.byte() % len(options)]

    def text(self) -> str:
        return self.take(self.byte() % 32).decode("latin-1")

    def value(self, depth: int = 3) -> Any:
        """Any value that JSON and YAML can hold."""
        kind = self.byte() % (10 if depth else 8)
        if kind >= 8:
            inner = [self.value(depth - 1) for _ in range(self.byte() % 5)]
            return inner if kind == 8 else {self.text(): value for value in inner}
        simple = (
            lambda: None,
            self.flag,
            self.byte,
            lambda: self.unpack("<q"),
            lambda: self.unpack("<d"),
            lambda: 10 ** (self.byte() * 4),
            self.text,
            self.text,
        )
        return simple[kind]()
