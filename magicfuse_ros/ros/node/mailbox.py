"""A mailbox with one slot: the newest item wins, older ones are handed back to be counted."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Hands the newest item from one thread to another and never queues.

    `put` is called by the executor thread, `take` by the worker thread.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._item: T | None = None
        self._closed = False

    def put(self, item: T) -> T | None:
        """Store `item`; return the older item it replaces, if one was waiting."""
        with self._condition:
            replaced, self._item = self._item, item
            self._condition.notify()
            return replaced

    def take(self) -> T | None:
        """Wait for an item and remove it; None once the mailbox is closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._item is not None or self._closed)
            item, self._item = self._item, None
            return None if self._closed else item

    def clear(self) -> T | None:
        """Remove and return the waiting item, if there is one."""
        with self._condition:
            item, self._item = self._item, None
            return item

    def close(self) -> None:
        """Let every `take` return None from now on."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
