"""Every image of a bag fused into another bag, without a drop and resumable after a kill.

Frames are fused in the bag's order, and each is recorded in ``OUT.partial`` when it is done
(`fuse_journal`). When all are, the output is put together there from the records and the
input's other messages, and moved to its place in one step. A second run over the same input skips
the frames that are recorded, having checked that the input still holds the messages that they were
made from; so that a run that was killed, wherever, and run again ends in the same messages as one
that was not.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from magicfuse_ros.bags.fuse_engine import Interrupted, LazyEngine
from magicfuse_ros.bags.fuse_frame import CameraInfos, FrameFuser
from magicfuse_ros.bags.fuse_journal import Journal, Record, digest_of
from magicfuse_ros.bags.fuse_plan import OUTPUTS, Camera, FuseOptions, Identity, Plan
from magicfuse_ros.bags.fuse_workspace import (
    BACKEND,
    NOTE,
    Workspace,
    left_out_of_finished,
    note_of,
)
from magicfuse_ros.bags.reader import BagError, BagMessage, BagReader, Topic
from magicfuse_ros.bags.writer import BagWriter
from magicfuse_ros.runtime.contract import EngineError, Progress

_TOLD_EACH = 5
"""Frames left out that are told one by one, for each reason; the others are only counted."""


@dataclass(frozen=True)
class Summary:
    """How a bag went.

    Attributes
    ----------
    fused
        Frames in the output.
    left_out
        Frames that could not be fused.
    reasons
        How many of them for which reason.
    resumed
        How many of both an earlier run had done.
    already
        The output was there, made of the same input with the same options; nothing was done.
    """

    fused: int = 0
    left_out: int = 0
    reasons: tuple[tuple[str, int], ...] = ()
    resumed: int = 0
    already: bool = False

    def __str__(self) -> str:
        """Say it in words."""
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
    source, target
        The bag to read, and the folder to make.
    options
        What to make and how; `options.engine` are the settings of `engine`.
    stop
        Setting it ends the work after the frame under way, with `Interrupted`.
    say, progress
        Told in words what is worth keeping, and where the work is now.

    Raises
    ------
    Interrupted
        `stop` was set. The same call goes on from there.
    BagError
        The input cannot be read or the output not written, another process is at it
        (`fuse_workspace.BusyError`), or an earlier run had another input or other options.
    EngineError
        The engine cannot be had, or fails on a frame. What is done is kept.
    ValueError
        The id map does not fit the model.
    """
    with BagReader(source) as bag:
        plan = Plan.of(bag, options)
        finished = left_out_of_finished(target, plan.identity)
        if finished is not None:
            return Summary(fused=plan.frames - finished, left_out=finished, already=True)
        for note in plan.notes:
            say(note)
        try:
            with Workspace(target) as space:
                space.require_same(plan.identity)
                work = _Work(bag, plan, options, space, stop, say, progress)
                summary = work.fuse(engine)
                work.join(summary.left_out)
        except OSError as error:
            raise BagError(
                f"cannot write {error.filename or target}: {error.strerror}; what is done is kept, "
                "the same command goes on"
            ) from error
    return summary


class _Work:
    """The two passes over a bag."""

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

    def fuse(self, engine: LazyEngine) -> Summary:
        """Record every frame that is not recorded yet."""
        infos = CameraInfos(self._bag, self._plan.cameras)
        reasons: Counter[str] = Counter()
        fuser: FrameFuser | None = None
        place = resumed = 0
        started = time.monotonic()
        with self._space.journal() as journal:
            records = _Records(journal, self._bag.path)
            for message in self._messages():
                infos.hear(message)
                camera = self._camera_of(message)
                if camera is None:
                    continue
                record = records.of(message)
                if record is not None:
                    resumed += 1
                else:
                    if fuser is None:
                        fuser = self._begin(engine)
                        started = time.monotonic()
                    record = self._fuse(fuser, message, camera, infos)
                    journal.append(place, digest_of(message), record)
                    self._tell(message, record, reasons)
                place += 1
                reasons.update([record.reason] if record.reason else [])
                self._progress(
                    f"{self._bag.path.name}: {place} of {self._plan.frames} frames"
                    f"{_speed(place - resumed, self._plan.frames - place, started)}"
                )
            journal.sync()
        left_out = sum(reasons.values())
        return Summary(place - left_out, left_out, tuple(sorted(reasons.items())), resumed)

    def join(self, left_out: int) -> None:
        """Make the output of the records and the input's other messages."""
        plan, target = self._plan, self._space.joined
        shutil.rmtree(target, ignore_errors=True)  # an earlier run was killed here
        identity: Identity = self._space.begun() or plan.identity
        with (
            self._space.journal() as journal,
            BagWriter(target, str(plan.identity["storage"])) as writer,
        ):
            try:
                writer.add_copies(self._bag, plan.left_out)
                writer.add_note(NOTE, note_of(identity, left_out))
                for each in plan.cameras.values():
                    for name in plan.identity["outputs"]:
                        if name != "camera_info" or each.info_topic is not None:
                            writer.add_topic(Topic(f"{each.node}/{name}", OUTPUTS[name]))
                records = _Records(journal, self._bag.path)
                total = self._bag.message_count
                for count, message in enumerate(self._messages(), 1):
                    camera = self._camera_of(message)
                    if camera is not None:
                        record = records.of(message)
                        if record is None:
                            raise BagError(  # noqa: TRY301
                                f"the records in {self._space.path} are damaged; run the same "
                                "command again to make the damaged ones anew"
                            )
                        for name, data in record.outputs.items():
                            writer.write(f"{camera.node}/{name}", message.received_ns, data)
                    elif (message.topic.name, message.topic.type) not in plan.left_out:
                        writer.copy(message)
                    self._progress(f"{self._bag.path.name} joined: {count} of {total} messages")
            except BaseException:
                writer.discard()  # the records stay, and the room is wanted
                raise
        self._space.finish()

    def _messages(self) -> Iterator[BagMessage]:
        """Yield every message of the bag; the order of equal times is the same in both passes."""
        for message in self._bag.messages():
            if self._stop.is_set():
                raise Interrupted
            yield message

    def _camera_of(self, message: BagMessage) -> Camera | None:
        camera = self._plan.cameras.get(message.topic.name)
        return camera if camera is not None and camera.topic.type == message.topic.type else None

    def _begin(self, engine: LazyEngine) -> FrameFuser:
        ready = engine.get()
        fuser = FrameFuser(ready, self._options)
        identity = self._plan.identity | {BACKEND: ready.backend_name}
        self._space.require_same(identity)
        self._space.begin(identity)
        return fuser

    def _fuse(
        self, fuser: FrameFuser, message: BagMessage, camera: Camera, infos: CameraInfos
    ) -> Record:
        try:
            return fuser.fuse(message, infos.of(camera))
        except Exception as error:
            # Another backend would give other pictures in the middle of a bag, so there is no
            # falling back here as in the node.
            raise EngineError(
                f"the engine failed on the message of {message.topic.name} at "
                f"{message.received_ns / 1e9:.9f}: {' '.join(str(error).split())}; what is done is "
                f"kept in {self._space.path}, the same command goes on"
            ) from error

    def _tell(self, message: BagMessage, record: Record, reasons: Counter[str]) -> None:
        if record.reason and reasons[record.reason] < _TOLD_EACH:
            self._say(
                f"left out, {record.reason}: {message.topic.name} at "
                f"{message.received_ns / 1e9:.9f}: {' '.join(record.text.split())}"
            )


class _Records:
    """Hands out the records in step with the bag's image messages."""

    def __init__(self, journal: Journal, path: Path) -> None:
        self._records = journal.read()
        self._path = path

    def of(self, message: BagMessage) -> Record | None:
        """Return the record of the next image message; None behind the last record."""
        source, record = next(self._records, (b"", None))
        if record is not None and source != digest_of(message):
            raise BagError(
                f"bag {self._path} is not the one that this output was begun with: the message of "
                f"{message.topic.name} at {message.received_ns / 1e9:.9f} has changed; remove the "
                "folder .partial beside the output to start over"
            )
        return record


def _speed(done: int, left: int, started: float) -> str:
    took = time.monotonic() - started
    if not done or took <= 0.0:
        return ""
    minutes, seconds = divmod(round(left * took / done), 60)
    return f", {done / took:.1f} a second, {minutes}:{seconds:02d} left"
