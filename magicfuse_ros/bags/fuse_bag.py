"""Fuses every image of a bag into another bag; drops none, and resumes after a kill.

The input is read once, in its order. The results are written in segments (`fuse_segments`) of about
a minute of work. A second run over the same input skips the messages that the whole segments were
made of, after checking that the input still holds them, and goes on from there. So a run that was
killed, wherever, and then resumed gives the same messages as one that was not. A run that is asked
to stop, or whose engine fails, keeps all its results up to the last frame.
"""

from __future__ import annotations

import hashlib
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from magicfuse_ros.bags.fuse_engine import Interrupted, LazyEngine
from magicfuse_ros.bags.fuse_frame import CameraInfos, FrameFuser, Fused
from magicfuse_ros.bags.fuse_plan import OUTPUTS, Camera, FuseOptions, Plan
from magicfuse_ros.bags.fuse_segments import Segment, Workspace, left_out_of_finished
from magicfuse_ros.bags.reader import BagError, BagMessage, BagReader, Topic
from magicfuse_ros.bags.writer import BagWriter
from magicfuse_ros.messages import one_line
from magicfuse_ros.runtime.contract import EngineError, Progress

SEGMENT_S = 60.0
"""Seconds of work in a segment, which is what a kill can lose."""

BACKEND = "runs_on"
"""Entry of the identity that is known only after the engine is loaded."""

_digest = partial(hashlib.blake2b, digest_size=16)

_REPORTED_EACH = 5
"""Frames left out that are reported one by one, for each reason; more are only counted."""


@dataclass(frozen=True)
class Summary:
    """The result of fusing one bag: how many frames were fused, and how many left out, by reason.

    `resumed` says how many of them an earlier run had done. `already` means that the output
    existed, made of the same input with the same options, so that nothing was done.
    """

    fused: int = 0
    left_out: int = 0
    reasons: tuple[tuple[str, int], ...] = ()
    resumed: int = 0
    already: bool = False

    def __str__(self) -> str:
        """Return the summary as text for the user."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons)
        return (
            f"{self.fused} frames fused"
            + (f" ({self.resumed} frames were done before)" if self.resumed else "")
            + (f", {self.left_out} left out: {reasons}" if self.left_out else "")
        )


def fuse_bag(
    source: Path,
    target: Path,
    options: FuseOptions,
    engine: LazyEngine,
    *,
    stop: threading.Event,
    say: Progress = lambda _text: None,
    progress: Progress = lambda _text: None,
) -> Summary:
    """Fuse the bag `source` into the bag `target`, or go on where an earlier run stopped.

    Parameters
    ----------
    options
        What to make and how; `options.engine` are the settings of `engine`.
    stop
        Setting it ends the work after the present frame, with `Interrupted`.
    say, progress
        Called with a line of text: `say` with what the user should keep, `progress` with how far
        the work is.

    Raises
    ------
    Interrupted
        `stop` was set. The same call resumes the work.
    BagError
        The input cannot be read, the output cannot be written, another process is writing it
        (`fuse_segments.BusyError`), or an earlier run had another input or other options.
    EngineError
        The engine cannot be loaded, or fails on a frame. The work done so far is kept.
    ValueError
        The id map does not fit the model.
    """
    with BagReader(source) as bag:
        plan = Plan.of(bag, options)
        finished = left_out_of_finished(target, plan.identity)
        if finished is not None:
            return Summary(fused=plan.frames - finished, left_out=finished, already=True)
        for note in (*bag.remarks, *plan.notes):
            say(note)
        try:
            with Workspace(target) as space:
                space.begin(plan.identity)
                return _Work(bag, plan, options, space, stop, say, progress).run(engine)
        except OSError as error:
            raise BagError(
                f"cannot write {error.filename or target}: {error.strerror}; what is done is kept, "
                "the same command goes on"
            ) from error


class _Work:
    """One pass over a bag."""

    def __init__(
        self,
        bag: BagReader,
        plan: Plan,
        options: FuseOptions,
        space: Workspace,
        stop: threading.Event,
        say: Progress,
        progress: Progress,
    ) -> None:
        self._bag, self._plan, self._options, self._space = bag, plan, options, space
        self._stop, self._say, self._progress = stop, say, progress
        self._infos = CameraInfos(bag, plan.cameras)
        self._reasons: Counter[str] = Counter()
        self._done = self._resumed = 0
        self._hinted: set[str] = set()

    def run(self, engine: LazyEngine) -> Summary:
        """Make every segment that does not exist yet, and then the output from all of them."""
        messages = self._messages()
        for segment in self._space.segments:
            self._pass(messages, segment)
        self._resumed = self._done
        ahead = next(messages, None)
        if ahead is not None or not self._space.segments:
            ready = engine.get()
            fuser = FrameFuser(ready, self._options)
            self._space.begin(self._plan.identity | {BACKEND: ready.backend_name})
            self._started = time.monotonic()
            ahead = self._make_segment(fuser, ahead, messages)
            while ahead is not None:
                ahead = self._make_segment(fuser, ahead, messages)
        self._space.finish()
        left_out = sum(self._reasons.values())
        reasons = tuple(sorted(self._reasons.items()))
        return Summary(self._done - left_out, left_out, reasons, self._resumed)

    def _messages(self) -> Iterator[BagMessage]:
        for message in self._bag.messages():
            if self._stop.is_set():
                raise Interrupted
            yield message

    def _pass(self, messages: Iterator[BagMessage], segment: Segment) -> None:
        """Skip the messages of a segment; raise `BagError` if the input now holds others there."""
        digest = _digest()
        last = ""
        for _ in range(segment.messages):
            message = next(messages, None)
            if message is None:
                break
            _add(digest, message)
            self._infos.hear(message)
            last = f"{message.received_ns / 1e9:.9f}"
        if digest.hexdigest() != segment.digest:
            raise BagError(
                f"bag {self._bag.path} is not the one that this output was begun with: its "
                f"messages up to {last} have changed; remove the folder {self._space.path} to "
                "start over"
            )
        self._done += segment.frames
        self._reasons.update(segment.reasons)

    def _make_segment(
        self, fuser: FrameFuser, first: BagMessage | None, messages: Iterator[BagMessage]
    ) -> BagMessage | None:
        """Write the next segment from `first` on; return the first message after it."""
        writer = self._writer()
        digest, count, done, before = _digest(), 0, self._done, Counter(self._reasons)

        def keep() -> None:
            reasons = dict(self._reasons - before)
            self._space.keep(writer, Segment(count, digest.hexdigest(), self._done - done, reasons))

        end = time.monotonic() + SEGMENT_S
        message = first
        try:
            while message is not None and (count == 0 or time.monotonic() < end):
                self._add(writer, fuser, message)
                _add(digest, message)
                count += 1
                message = next(messages, None)
            keep()
        except (Interrupted, EngineError):
            if count:
                keep()
            raise
        except BaseException:
            writer.discard()  # it is made again, and the disk may need the space
            raise
        return message

    def _writer(self) -> BagWriter:
        """Begin a segment; each has all topics, so the output is the same wherever it is split."""
        writer = self._space.writer(str(self._plan.identity["storage"]))
        writer.add_copies(self._bag, self._plan.left_out)
        for camera in self._plan.cameras.values():
            for name in self._plan.identity["outputs"]:
                if name != "camera_info" or camera.info_topic is not None:
                    writer.add_topic(Topic(f"{camera.node}/{name}", OUTPUTS[name]))
        return writer

    def _add(self, writer: BagWriter, fuser: FrameFuser, message: BagMessage) -> None:
        """Write a message of the input and its results, as far as they are wanted."""
        self._infos.hear(message)
        camera = self._plan.cameras.get(message.topic.name)
        if camera is not None and camera.topic.type != message.topic.type:
            camera = None
        # Fused before anything of it is written: a message that fails here has to be done again.
        fused = None if camera is None else self._fuse(fuser, message, camera)
        if (message.topic.name, message.topic.type) not in self._plan.left_out:
            writer.copy(message)
        if fused is None or camera is None:
            return
        for name, data in fused.outputs.items():
            writer.write(f"{camera.node}/{name}", message.received_ns, data)
        hint = fuser.hints.get(message.topic.name)
        if hint and message.topic.name not in self._hinted:
            self._hinted.add(message.topic.name)
            self._say(f"{message.topic.name} may come out too dark: {hint}")
        if fused.reason:
            if self._reasons[fused.reason] < _REPORTED_EACH:
                self._say(
                    f"left out, {fused.reason}: {message.topic.name} at "
                    f"{message.received_ns / 1e9:.9f}: {one_line(fused.text)}"
                )
            self._reasons[fused.reason] += 1
        self._done += 1
        self._progress(
            f"{self._bag.path.name}: {self._done} of {self._plan.frames} frames"
            f"{_speed(self._done - self._resumed, self._plan.frames - self._done, self._started)}"
        )

    def _fuse(self, fuser: FrameFuser, message: BagMessage, camera: Camera) -> Fused:
        try:
            return fuser.fuse(message, self._infos.of(camera))
        except Exception as error:
            # Another backend would give other pictures in the middle of a bag, so there is no
            # falling back here as in the node.
            raise EngineError(
                f"the engine failed on the message of {message.topic.name} at "
                f"{message.received_ns / 1e9:.9f}: {one_line(error)}; what is done is "
                f"kept in {self._space.path}, the same command goes on"
            ) from error


def _add(digest: hashlib.blake2b, message: BagMessage) -> None:
    """Add all of a message of the input to a digest."""
    name = message.topic.name.encode()
    digest.update(struct.pack("<IqQ", len(name), message.received_ns, len(message.data)))
    digest.update(name)
    digest.update(message.data)


def _speed(done: int, left: int, started: float) -> str:
    took = time.monotonic() - started
    if not done or took <= 0.0:
        return ""
    minutes, seconds = divmod(round(left * took / done), 60)
    return f", {done / took:.1f} a second, {minutes}:{seconds:02d} left"
