"""The folder OUT.partial: the finished segments of an output, and an account of their input.

A segment is a closed bag file with the results of some messages of the input, in the input's order.
It is written in a folder of its own, moved among the others when it is finished, and then entered
in the account. A segment that a kill left unfinished is in no account, and is made again. At the
end the segments and one ``metadata.yaml`` are the output: a split bag, as rosbag2 makes them too.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, final

import yaml

from magicfuse_ros.bags.fuse_plan import Identity, differences
from magicfuse_ros.bags.lasting_storage import Reserve, sync
from magicfuse_ros.bags.reader import BagError, BagReader
from magicfuse_ros.bags.suffixes import SUFFIXES
from magicfuse_ros.bags.writer import BagWriter

NOTE = "magicfuse_bag_fuse"
"""Name of the note in the finished bag that holds what it was made from."""

_LOCK, _ACCOUNT, _NEW, _ASIDE = "lock", "account.json", "account.new", "segment"
_METADATA, _SAMPLE = "metadata.yaml", "topics.yaml"


class BusyError(BagError):
    """Another process is at work on the same output."""


@dataclass(frozen=True)
class Segment:
    """What one file of the output was made of: input messages that follow those of the file before.

    `digest` is that of these messages, `frames` says how many of them were images to fuse, and
    `reasons` how many of these were left out, by reason. The file has `size` bytes.
    """

    messages: int
    digest: str
    frames: int
    reasons: dict[str, int] = field(default_factory=dict)
    size: int = 0


@final
class Workspace:
    """Holds the lock on the output `target` while it is open; a context manager.

    It raises `BusyError` if another process has the lock or has just finished the bag, and
    `BagError` if the folder cannot be made or its account is damaged.

    Attributes
    ----------
    segments : list[Segment]
        The finished segments.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = partial_of(target)
        self._joined = self.path / target.name
        self._lock = self._locked()
        self._finished = False
        self._begun: Identity = {}
        self.segments: list[Segment] = []
        try:
            account = json.loads((self.path / _ACCOUNT).read_text(encoding="utf-8"))
            self._begun = account["identity"]
            segments = [Segment(**segment) for segment in account["segments"]]
        except FileNotFoundError:
            return
        except (ValueError, TypeError, KeyError) as error:
            os.close(self._lock)
            raise BagError(
                f"{self.path / _ACCOUNT} is damaged; remove the folder {self.path} to start over"
            ) from error
        sizes = {file.stem: file.stat().st_size for file in self._joined.glob("*")}
        for number, segment in enumerate(segments):
            if sizes.get(f"{target.name}_{number}") != segment.size:
                break  # lost or damaged: this one and those after it are made again
            self.segments.append(segment)

    def begin(self, identity: Identity) -> None:
        """Check that the next segments will fit those that exist, and note their identity.

        It raises a `BagError` that names each difference.
        """
        known = {name: value for name, value in identity.items() if name in self._begun}
        changed = differences(self._begun, known)
        if changed:
            raise BagError(
                f"{self.path} was begun otherwise: {'; '.join(changed)}. Give the same again to go "
                "on, or remove that folder to start over"
            )
        self._begun = identity | self._begun

    def writer(self, storage: str) -> BagWriter:
        """Begin the next segment, in a folder of its own."""
        shutil.rmtree(self.path / _ASIDE, ignore_errors=True)  # of a run that was killed
        return BagWriter(self.path / _ASIDE, storage)

    def keep(self, writer: BagWriter, segment: Segment) -> None:
        """Close a segment, move it among the finished ones and enter it in the account."""
        writer.close()
        self._joined.mkdir(exist_ok=True)
        file = next(file for file in writer.path.iterdir() if file.suffix in SUFFIXES)
        finished = self._joined / f"{self.target.name}_{len(self.segments)}{file.suffix}"
        file.rename(finished)
        (writer.path / _METADATA).replace(self.path / _SAMPLE)  # the topics, alike in all
        sync(self._joined)
        self.segments.append(replace(segment, size=finished.stat().st_size))
        account = {"identity": self._begun, "segments": [asdict(each) for each in self.segments]}
        new = self.path / _NEW
        new.write_text(json.dumps(account) + "\n", encoding="utf-8")
        sync(self.path, only=new)
        new.replace(self.path / _ACCOUNT)
        shutil.rmtree(writer.path)

    def finish(self) -> None:
        """Write ``metadata.yaml``, rename the bag to `target` and remove everything else."""
        names = {f"{self.target.name}_{number}" for number in range(len(self.segments))}
        for file in self._joined.iterdir():  # one that a kill kept out of the account
            if file.stem not in names:
                file.unlink()
        left_out = sum(sum(segment.reasons.values()) for segment in self.segments)
        note = json.dumps({"identity": self._begun, "left_out": left_out})
        sample = (self.path / _SAMPLE).read_text(encoding="utf-8")
        metadata = _metadata(self._joined, sample, note)
        (self._joined / _METADATA).write_text(metadata, encoding="utf-8")
        sync(self._joined)
        self._joined.rename(self.target)
        self._finished = True
        sync(self.path, only=self.target.parent)
        clear(self.target)

    def _locked(self) -> int:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            Reserve(self.path).release()  # before a model is loaded for nothing
            lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise BagError(f"cannot write {self.path}: {error.strerror}") from error
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

    def __exit__(self, *_error: object) -> None:
        if not self._finished and not self.segments:
            clear(self.target)  # an error of the first second must not leave a folder
        os.close(self._lock)


def partial_of(target: Path) -> Path:
    """Return the folder that keeps the work on `target` until it is done."""
    return target.with_name(f"{target.name}.partial")


def clear(target: Path) -> None:
    """Remove the work on `target`, if there is any, and no file that `bag fuse` did not make."""
    folder = partial_of(target)
    for name in (target.name, _ASIDE):
        shutil.rmtree(folder / name, ignore_errors=True)
    with suppress(OSError):  # what stays goes with the next run
        for name in (_ACCOUNT, _NEW, _SAMPLE, _LOCK):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def left_out_of_finished(target: Path, wanted: Identity) -> int | None:
    """Return how many frames an existing output leaves out; None if there is no output.

    It raises `BagError` if `target` exists, and is not an output of the same identity.
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


def _metadata(folder: Path, sample: str, note: str) -> str:
    """Return the metadata.yaml for all files of a folder; `sample` is that of one segment."""
    document = yaml.safe_load(sample)
    with BagReader(folder) as files:
        pass
    counts = {(each.topic, each.msgtype): each.msgcount for each in files.connections}
    root = document["rosbag2_bagfile_information"]
    for said in root["topics_with_message_count"]:
        topic = said["topic_metadata"]
        said["message_count"] = counts[topic["name"], topic["type"]]
    root["files"] = [
        {"path": name, **_extent(start, end, count)} for name, start, end, count in files.parts
    ]
    root["relative_file_paths"] = [part["path"] for part in root["files"]]
    root["custom_data"] = {NOTE: note}
    root.update(_extent(files.start_ns, files.end_ns, files.message_count))
    return yaml.safe_dump(document, sort_keys=False)


def _extent(start_ns: int, end_ns: int, count: int) -> dict[str, Any]:
    return {
        "duration": {"nanoseconds": end_ns - start_ns},
        "starting_time": {"nanoseconds_since_epoch": start_ns},
        "message_count": count,
    }
