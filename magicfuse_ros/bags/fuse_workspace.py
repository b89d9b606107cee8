"""The folder OUT.partial: one process at a time, begun with one input and one set of options."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import final

from magicfuse_ros.bags.fuse_journal import Journal
from magicfuse_ros.bags.fuse_plan import Identity, differences
from magicfuse_ros.bags.reader import BagError, BagReader

NOTE = "magicfuse_bag_fuse"
"""Name of the note in the finished bag that holds what it was made from."""

BACKEND = "runs_on"
"""Entry of the identity that is known once the engine is."""


_LOCK, _JOURNAL, _BEGUN, _NEW = "lock", "frames.journal", "begun.json", "begun.new"


class BusyError(BagError):
    """Another process is at work on the same output."""


@final
class Workspace:
    """Holds the lock while it is open; a context manager.

    Parameters
    ----------
    target
        The bag to make in the end. It must not exist.

    Raises
    ------
    BusyError
        Another process has the lock, or has just finished the bag.
    BagError
        The folder cannot be made.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = partial_of(target)
        self.joined = self.path / target.name
        """Where the bag is put together; a bag's file is named after its folder."""
        self._kept = self.path / _BEGUN
        self._lock = self._locked()
        self._finished = False

    def journal(self) -> Journal:
        """Open the records of the frames that are done."""
        return Journal(self.path / _JOURNAL)

    def begun(self) -> Identity | None:
        """Return the identity that `begin` kept; None where nothing is kept yet."""
        try:
            text = self._kept.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            identity: Identity = json.loads(text)
        except ValueError as error:
            raise BagError(
                f"{self._kept} is damaged; remove the folder {self.path} to start over"
            ) from error
        return identity

    def begin(self, identity: Identity) -> None:
        """Keep what the first frame is about to be made with."""
        new = self.path / _NEW
        with new.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps(identity, indent=1) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(self._kept)

    def require_same(self, wanted: Identity) -> None:
        """Refuse to go on with another input or other options than it was begun with.

        Raises
        ------
        BagError
            It names what differs.
        """
        changed = differences(self.begun() or wanted, wanted)
        if changed:
            raise BagError(
                f"{self.path} was begun otherwise: {'; '.join(changed)}. Give the same again to go "
                "on, or remove that folder to start over"
            )

    def finish(self) -> None:
        """Put the joined bag in its place and remove everything else."""
        for file in self.joined.iterdir():
            _sync(file)
        _sync(self.joined)
        self.joined.rename(self.target)
        self._finished = True
        _sync(self.target.parent)
        clear(self.target)

    def _locked(self) -> int:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise BagError(f"cannot make {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a killed process loses it
            # Who held it may have finished the bag and removed the folder since it was opened.
            same = (self.path / _LOCK).stat().st_ino == os.fstat(lock).st_ino
        except OSError:
            same = False
        if not same or self.target.exists():
            os.close(lock)
            raise BusyError(
                f"another process is making {self.target}; wait for it, or choose another"
            )
        return lock

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._finished and not self._kept.exists():
            # Nothing worth keeping: an error of the first second must not leave a folder.
            clear(self.target)
        os.close(self._lock)


def partial_of(target: Path) -> Path:
    """Return where the work on `target` is kept until it is done."""
    return target.with_name(f"{target.name}.partial")


def clear(target: Path) -> None:
    """Remove the work on `target`, as far as it is there, and nothing that is not `bag fuse`'s."""
    folder = partial_of(target)
    shutil.rmtree(folder / target.name, ignore_errors=True)
    with suppress(OSError):  # what stays goes with the next run
        for name in (_JOURNAL, _BEGUN, _NEW, _LOCK):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def left_out_of_finished(target: Path, wanted: Identity) -> int | None:
    """Return how many frames an existing output leaves out; None where there is no output.

    Raises
    ------
    BagError
        What is there was made of something else.
    """
    if not target.exists():
        return None
    try:
        with BagReader(target) as bag:
            note = json.loads(bag.notes[NOTE])
            changed = differences(note["identity"], wanted)
            left_out = int(note["left_out"])
    except (BagError, KeyError, ValueError, TypeError, AttributeError):
        changed, left_out = ["it is no bag that `bag fuse` made"], 0
    if changed:
        raise BagError(
            f"{target} exists already, and is not what would be made: {'; '.join(changed)}; "
            "remove it or choose another name"
        )
    clear(target)  # an earlier run may have been killed before it had
    return left_out


def note_of(identity: Identity, left_out: int) -> str:
    """Return the text of `NOTE` for a finished bag."""
    return json.dumps({"identity": identity, "left_out": left_out})


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
