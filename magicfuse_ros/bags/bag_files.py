"""Reads the files of a bag, whatever state they are in, as one stream of messages.

``metadata.yaml`` says which files belong to a bag, with what QoS its topics are to be offered, and
how it is compressed. If it is missing, damaged, or contradicts the files, the files are right, and
a remark says so.
"""

from __future__ import annotations

import heapq
import shutil
import sqlite3
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path, PureWindowsPath
from tempfile import TemporaryDirectory
from typing import Any, cast

import yaml
from rosbags.interfaces import Connection, ConnectionExtRosbag2, MessageDefinitionFormat, Qos
from rosbags.rosbag2 import ReaderError
from rosbags.rosbag2.metadata import ReaderMetadata, parse_qos
from rosbags.rosbag2.storage_sqlite3 import Sqlite3Reader

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from magicfuse_ros.bags.mcap_file import McapFile, OtherFormatError
from magicfuse_ros.bags.suffixes import SUFFIXES
from magicfuse_ros.messages import one_line
from magicfuse_ros.yaml_limits import load_yaml

_ZSTD = ".zstd"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

Record = tuple[Connection, int, bytes]


@dataclass
class _Metadata:
    """The parts of metadata.yaml that are used."""

    files: list[str]
    compression: str = ""
    notes: dict[str, str] = field(default_factory=dict)
    topics: list[dict[str, Any]] = field(default_factory=list)


class BagFiles:
    """The open files of a bag.

    Parameters
    ----------
    path
        A folder, or one file of messages.

    Attributes
    ----------
    connections : list[Connection]
        One for each topic name and type, with its messages in all files.
    message_count, start_ns, end_ns : int
        Number of messages in all files, and their first and last time, which are 0 if there are
        none.
    storage : str
        ``mcap`` or ``sqlite3``.
    parts : list[tuple[str, int, int, int]]
        Name, start, end (ns) and number of messages of each file.
    notes : Mapping[str, str]
        The texts of metadata.yaml's custom_data.
    remarks : list[str]
        Sentences for the user about what is wrong with the files but does no harm.

    Raises
    ------
    OtherFormatError
        The files are not damaged, but no ROS 2 bag.
    FileNotFoundError
        There is no file of messages.
    Exception
        Whatever a parser raises at damaged bytes.
    """

    def __init__(self, path: Path) -> None:
        self.remarks: list[str] = []
        self._stack = ExitStack()
        self._metadata = self._read_metadata(path) if path.is_dir() else None
        files = [path] if path.is_file() else self._listed(path)
        if not files:
            raise FileNotFoundError(path)
        try:
            self._storages = [self._open(file) for file in files]
            self._join()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the files."""
        self._stack.close()

    def messages(self, connections: Collection[Connection], start_ns: int = 0) -> Iterator[Record]:
        """Yield (connection, time in ns, serialised message) from `start_ns` on, in its order."""
        wanted = {connection.id: connection for connection in connections}
        streams = [
            self._of_one_file(number, wanted, start_ns)
            for number, storage in enumerate(self._storages)
            if storage.metadata.message_count
        ]
        for record in heapq.merge(*streams, key=itemgetter(1)):
            if record[0] is not None:
                yield cast("Record", record)

    def _of_one_file(
        self, number: int, wanted: Mapping[int, Connection], start_ns: int
    ) -> Iterator[tuple[Connection | None, int, bytes]]:
        storage = self._storages[number]
        chosen = [each for each in storage.connections if self._ids[number, each.id] in wanted]
        if not chosen:
            return
        # The merge takes this first, so that a later file is not read before its time comes.
        yield None, storage.metadata.start_time, b""
        for connection, time, data in storage.messages(chosen, start_ns or None):
            yield wanted[self._ids[number, connection.id]], time, self._unpacked(data)

    def _unpacked(self, data: bytes) -> bytes:
        # Without metadata.yaml, only the data shows it. CDR, unlike Zstandard, begins with a zero.
        if self._compression == "message" and data[:4] == _ZSTD_MAGIC:
            return bytes(zstd.decompress(data))
        return data

    # --- metadata.yaml -------------------------------------------------------------------------

    def _read_metadata(self, folder: Path) -> _Metadata | None:
        path = folder / "metadata.yaml"
        if not path.is_file():
            self.remarks.append("metadata.yaml is missing: all is taken from the messages' files")
            return None
        try:
            return _metadata_of(load_yaml(path))
        except (ReaderError, yaml.YAMLError, UnicodeDecodeError) as error:
            if not _found(folder):
                raise
            text = one_line(error)[:200]
            self.remarks.append(
                f"metadata.yaml is damaged ({text}): all is taken from the messages' files"
            )
            return None

    def _listed(self, folder: Path) -> list[Path]:
        """Return the files of messages of a folder."""
        found = _found(folder)
        if self._metadata is None:
            recordings = {file.name.partition(".")[0].rstrip("0123456789") for file in found}
            if len(recordings) > 1:
                raise OtherFormatError(
                    "has no metadata.yaml and files of several recordings: give one of the files"
                )
            return found
        files: list[Path] = []
        missing: list[Path] = []
        for name in self._metadata.files:
            # Only the last part of the name is used, so that a bag reads nothing outside of its
            # folder. An absolute path names the place where the bag was recorded.
            file = folder / PureWindowsPath(name).name
            packed = file.with_name(f"{file.name}{_ZSTD}")
            file = file if file.is_file() or not packed.is_file() else packed
            (files if file.is_file() else missing).append(file)
        if not files and found:
            self.remarks.append("metadata.yaml lists none of the files here: all are taken")
            return found
        if missing:
            names = [str(file) for file in missing]
            raise OtherFormatError(f"is not whole. Some database files are missing: {names}")
        return list(dict.fromkeys(files))

    # --- files of messages ---------------------------------------------------------------------

    def _open(self, file: Path) -> McapFile | Sqlite3Reader:
        name = file.name
        if file.suffix == _ZSTD:
            folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="magicfuse_bag_")))
            with zstd.open(file, "rb") as packed, (folder / file.stem).open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
            file = folder / file.stem
        storage: McapFile | Sqlite3Reader
        if file.suffix == ".mcap":
            storage = McapFile(file, unclosed_too=self._metadata is None)
        else:
            if _roll_back(file):
                self.remarks.append(f"{name} was not closed: its last whole state is read")
            storage = Sqlite3Reader(file)
        storage.open()
        self._stack.callback(storage.close)
        if isinstance(storage, McapFile) and storage.unclosed:
            self.remarks.append(
                f"{name} was not closed: its {storage.metadata.message_count} whole messages are "
                "read"
            )
        return storage

    def _join(self) -> None:
        """Join the connections of the same topic and type in all files into one."""
        metadata = self._metadata or _Metadata([])
        self._compression = metadata.compression if self._metadata else "message"
        self.notes: Mapping[str, str] = metadata.notes
        self.storage = "mcap" if isinstance(self._storages[0], McapFile) else "sqlite3"
        joined: dict[tuple[str, str], Connection] = {}
        self._ids: dict[tuple[int, int], int] = {}
        for number, storage in enumerate(self._storages):
            for connection in storage.connections:
                topic = _full_name(connection.topic)
                new = connection._replace(topic=topic, id=len(joined))
                old = joined.get((topic, connection.msgtype))
                new = new if old is None else _both(old, new)
                joined[topic, connection.msgtype] = new
                self._ids[number, connection.id] = new.id
        for said in metadata.topics:
            self._apply(said, joined)
        self.connections = list(joined.values())
        self.parts = [
            (Path(str(storage.path)).name, *_extent(storage.metadata)) for storage in self._storages
        ]
        self.message_count = sum(count for *_, count in self.parts)
        self.start_ns = min((start for _, start, _, count in self.parts if count), default=0)
        self.end_ns = max((end for _, _, end, count in self.parts if count), default=0)

    def _apply(self, said: dict[str, Any], joined: dict[tuple[str, str], Connection]) -> None:
        """Adopt what metadata.yaml says about a topic."""
        topic = said["topic_metadata"]
        key = _full_name(topic["name"]), topic["type"]
        profiles: list[Qos] = []
        try:
            profiles = parse_qos(topic.get("offered_qos_profiles", []))
        except Exception:  # noqa: BLE001 - whoever edited it may have made anything of it
            self.remarks.append(f"the QoS of {key[0]} in metadata.yaml is damaged")
        if not all(map(is_qos, profiles)):
            self.remarks.append(f"the QoS of {key[0]} in metadata.yaml is damaged")
            profiles = []
        digest = topic.get("type_description_hash", "")
        connection = joined.get(key)
        if connection is None:  # a topic without messages
            extension = ConnectionExtRosbag2("cdr", profiles)
            blank = self._storages[0].connections
            definition = next((c.msgdef for c in blank if c.msgtype == key[1]), None)
            if definition is None or not isinstance(digest, str):
                return
            joined[key] = Connection(len(joined), *key, definition, digest, 0, extension, self)
            return
        if said.get("message_count") != connection.msgcount:
            self.remarks.append(
                f"metadata.yaml counts {said.get('message_count')!r:.40} messages of {key[0]}: "
                f"there are {connection.msgcount}"
            )
        serialization = extension_of(connection).serialization_format
        kept = profiles or extension_of(connection).offered_qos_profiles
        joined[key] = connection._replace(
            ext=ConnectionExtRosbag2(serialization, kept),
            digest=connection.digest or (digest if isinstance(digest, str) else ""),
        )


def extension_of(connection: Connection) -> ConnectionExtRosbag2:
    """Return what rosbag2 adds to a connection: serialisation and QoS."""
    return cast("ConnectionExtRosbag2", connection.ext)


def is_qos(profile: Qos) -> bool:
    """Whether the numbers of a QoS are numbers: rosbags takes any values from a bag."""
    times = (profile.deadline, profile.lifespan, profile.liveliness_lease_duration)
    numbers = [profile.depth, *(number for time in times for number in time)]
    return all(isinstance(number, int) for number in numbers)


def _found(folder: Path) -> list[Path]:
    """Return the files of messages in a folder, in the order in which a recorder splits them."""
    files = [file for file in folder.iterdir() if file.name.removesuffix(_ZSTD).endswith(SUFFIXES)]
    hidden = [file for file in files if file.name.startswith(".")]  # of macOS: ._drive.mcap
    return sorted(set(files) - set(hidden), key=lambda file: (len(file.name), file.name))


def _metadata_of(document: object) -> _Metadata:
    """Check the parts of metadata.yaml that are used.

    Raises
    ------
    ReaderError
        One of them has another type.
    """
    root = document.get("rosbag2_bagfile_information") if isinstance(document, dict) else None
    if not isinstance(root, dict):
        raise ReaderError("it holds no rosbag2_bagfile_information")
    files = root.get("relative_file_paths")
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise ReaderError("its relative_file_paths are no list of names")
    topics = root.get("topics_with_message_count")
    if not isinstance(topics, list) or not all(map(_is_topic, topics)):
        raise ReaderError("its topics_with_message_count are no list of topics")
    notes = root.get("custom_data") or {}
    if not isinstance(notes, dict) or not all(
        isinstance(text, str) for note in notes.items() for text in note
    ):
        raise ReaderError(f"its custom_data is {type(notes).__name__}; accepted: texts by name")
    return _Metadata(files, str(root.get("compression_mode") or "").lower(), notes, topics)


def _is_topic(said: object) -> bool:
    topic = said.get("topic_metadata") if isinstance(said, dict) else None
    return isinstance(topic, dict) and all(
        isinstance(topic.get(name), str) and topic[name] for name in ("name", "type")
    )


def _full_name(topic: object) -> str:
    """Return a topic's name with the slash before it that bags converted from ROS 1 may lack."""
    if not isinstance(topic, str) or not topic.strip("/"):
        raise ReaderError(f"a topic has {topic!r:.60} for a name")
    return f"/{topic.strip('/')}"


def _extent(said: ReaderMetadata) -> tuple[int, int, int]:
    """Return start, end and number of messages; the times are 0 where there are none."""
    if not said.message_count:
        return 0, 0, 0
    return said.start_time, said.end_time - 1, said.message_count  # rosbags counts one ns more


def _both(old: Connection, new: Connection) -> Connection:
    """Join two connections of one topic and type."""
    defined = old.msgdef.format != MessageDefinitionFormat.NONE
    profiles: Sequence[Qos] = extension_of(old).offered_qos_profiles
    more = [qos for qos in extension_of(new).offered_qos_profiles if qos not in profiles]
    return old._replace(
        msgdef=old.msgdef if defined else new.msgdef,
        digest=old.digest or new.digest,
        msgcount=old.msgcount + new.msgcount,
        ext=extension_of(old)._replace(offered_qos_profiles=[*profiles, *more]),
    )


def _roll_back(file: Path) -> bool:
    """Bring a database whose writer was killed into its last whole state; False if not needed."""
    beside = [file.with_name(file.name + ending) for ending in ("-journal", "-wal")]
    if not any(other.is_file() and other.stat().st_size for other in beside):
        return False
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True)) as base:
            base.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
            base.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error as error:
        raise OtherFormatError(
            f"was not closed, and {file.name} cannot be brought into its last whole state "
            f"({error}): copy the bag to where it can be written"
        ) from error
    return True
