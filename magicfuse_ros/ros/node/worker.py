"""The worker thread: it alone loads, runs and closes the engine; the executor never computes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from magicfuse_ros.ros.node.mailbox import Mailbox
from magicfuse_ros.ros.node_input import Arrival
from magicfuse_ros.runtime.contract import Progress
from magicfuse_ros.runtime.engine_type import Engine


class LoadCancelled(Exception):  # noqa: N818 - it ends a load that somebody stopped; nothing failed
    """Raised inside a load, through its progress callback, when the node is asked to stop."""


@dataclass(frozen=True)
class Frame(Arrival):
    """An image message; `in_order` is False if its stamp is older than that of the one before."""

    in_order: bool
    _outcome: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def claim(self) -> bool:
        """Claim the right to count what becomes of this frame; only the first caller gets True.

        The worker claims a frame when the engine is done with it, the watchdog when the engine
        hangs.
        """
        return self._outcome.acquire(blocking=False)


class EngineWorker:
    """One thread with one engine, which takes its frames from one mailbox.

    Parameters
    ----------
    load
        Makes a warm engine; it is given a progress callback.
    process
        Handles one frame and must not raise.
    log
        Called with a line of text as work proceeds.
    mailbox
        Where frames come from. The next worker takes over the mailbox of one whose engine hangs.
    """

    def __init__(
        self,
        *,
        load: Callable[[Progress], Engine],
        process: Callable[[Engine, Frame, Progress], None],
        log: Callable[[str], object],
        mailbox: Mailbox[Frame] | None = None,
    ) -> None:
        self.mailbox: Mailbox[Frame] = mailbox or Mailbox()
        self.engine: Engine | None = None
        self.error: Exception | None = None
        self.last_progress, self._reported_at = "loading", time.monotonic()
        self._load, self._process, self._log = load, process, log
        self._stop = threading.Event()
        self._loaded = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._busy: tuple[Frame, float] | None = None
        self._busy_lock = threading.Lock()
        self._given_up = threading.Event()
        # A daemon thread, since an engine that hangs must not keep a stopped node alive.
        self._thread = threading.Thread(target=self._run, name="fuse_worker", daemon=True)

    def start(self) -> None:
        """Begin to load."""
        self._thread.start()

    def wait_loaded(self, timeout_s: float) -> bool:
        """Wait for the load to end; then either `engine` or `error` is set."""
        return self._loaded.wait(timeout_s)

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no frame is being fused; False if it takes longer."""
        return self._idle.wait(timeout_s)

    def stop(self, timeout_s: float) -> bool:
        """Close the engine and end the thread; False if the engine does not come back in time."""
        self._stop.set()
        self.mailbox.close()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    @property
    def busy_s(self) -> float:
        """Seconds spent on the present frame; 0 when idle."""
        busy = self._busy
        return 0.0 if busy is None else time.monotonic() - busy[1]

    def begin_anew(self) -> None:
        """Count the present frame's time from now on: the engine has been asked for other work."""
        with self._busy_lock:
            if self._busy is not None:
                self._busy = self._busy[0], time.monotonic()

    def give_up(self, limit_s: float) -> bool:
        """Give up this worker if it has worked on one frame for more than `limit_s` seconds.

        Python cannot end a thread that hangs in native code. This one takes no further frame, and
        if it ever comes back, it closes its engine and ends. If it returns True, the caller has to
        count the worker's frame.
        """
        if self.engine is not None and self.engine.preparing:
            self.begin_anew()  # making networks does not count as the frame's time
            return False
        with self._busy_lock:
            busy = self._busy
            if busy is None or time.monotonic() - busy[1] <= limit_s or not busy[0].claim():
                return False
            self._given_up.set()
            return True

    def progress(self, text: str) -> None:
        """Show progress of a load or a change of backend."""
        if self._stop.is_set():
            raise LoadCancelled
        self.last_progress, self._reported_at = text, time.monotonic()
        self._log(text)

    def repeat_progress(self, more: str, silence_s: float) -> None:
        """Show the last progress again, followed by `more`, if `silence_s` seconds were silent."""
        if time.monotonic() - self._reported_at >= silence_s:
            self._reported_at = time.monotonic()
            self._log(f"{self.last_progress} {more}")

    def _run(self) -> None:
        try:
            engine = self._load(self.progress)
        except Exception as error:  # noqa: BLE001 - the executor thread reports it, whatever it is
            self.error = error
            return
        else:
            self.engine = engine
        finally:
            self._loaded.set()
        while not self._given_up.is_set() and (frame := self.mailbox.take()) is not None:
            self._idle.clear()
            self._set_busy(frame)
            self._process(engine, frame, self.progress)
            self._set_busy(None)
            self._idle.set()
        try:
            engine.close()
        except Exception as error:  # noqa: BLE001 - the node goes on stopping
            self._log(f"the engine did not close cleanly: {error}")

    def _set_busy(self, frame: Frame | None) -> None:
        # Locked, so that the executor's thread cannot write an old frame back over this.
        with self._busy_lock:
            self._busy = None if frame is None else (frame, time.monotonic())
