"""Writes a new bag, with new messages and copies of those of another bag."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast, final

from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin
from rosbags.typesys import Stores, get_typestore

from magicfuse_ros.bags.lasting_storage import (
    LastingMcap,
    LastingSqlite3,
    LastingWriter,
    Reserve,
    sync,
)
from magicfuse_ros.bags.reader import BagError, BagMessage, BagReader, Topic, extension_of

STORAGES: Mapping[str, StoragePlugin] = {
    "mcap": StoragePlugin.MCAP,
    "sqlite3": StoragePlugin.SQLITE3,
}
DEFAULT_STORAGE = "mcap"  # as rosbag2 itself since ROS 2 Iron

_FOREVER = QosTime(0x7FFFFFFF, 0xFFFFFFFF)
_TYPES = get_typestore(Stores.ROS2_KILTED)


def knows_type(message_type: str) -> bool:
    """Whether a topic of this type can be written, which needs the type's definition."""
    return message_type in _TYPES.fielddefs


def canonical(message_type: str, data: bytes) -> bytes:
    """Return a serialised message of a known type with zeros for padding.

    DDS libraries leave whatever was in memory between fields, so that the same message serialised
    twice may differ in bytes that mean nothing.
    """
    return bytes(_TYPES.serialize_cdr(_TYPES.deserialize_cdr(data, message_type), message_type))


@final
class BagWriter:
    """Writes a new bag; a context manager, with an example in `BagReader`.

    If an exception or a full disk ends the writing, the written messages stay, in a closed bag. An
    exception removes only a bag without any message; callers that can make the bag again call
    `discard`. A kill loses what came after the last `flush`; `BagReader` reads the rest.

    Parameters
    ----------
    path
        Folder to make. It must not exist, except as a bag without messages, which is replaced.
    storage
        ``mcap`` or ``sqlite3``.

    Attributes
    ----------
    count : int
        Messages in the bag.

    Raises
    ------
    BagError
        The path exists or cannot be made, or the disk is full.
    ValueError
        Unknown storage.
    """

    def __init__(self, path: Path, storage: str = DEFAULT_STORAGE) -> None:
        if storage not in STORAGES:
            raise ValueError(f"storage {storage!r}: accepted are {', '.join(STORAGES)}")
        if path.exists():
            _remove_empty(path)
        self.path = path
        self._failed = False
        self._connections: dict[str, Connection] = {}
        self._copied: dict[tuple[str, str], Connection] = {}
        # Version 9 is what rosbag2 of Jazzy and newer reads and writes.
        self._writer = LastingWriter(path, version=9, storage_plugin=STORAGES[storage])
        with self._telling("write"):
            path.mkdir(parents=True)
            self._lock = _locked(path)
            try:
                self._reserve = Reserve(path)
                self._writer.storage = self._writer.STORAGE_PLUGINS[STORAGES[storage]](
                    path, self._writer.compression_mode
                )
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)
                os.close(self._lock)
                raise

    @property
    def count(self) -> int:
        """Messages in the bag."""
        return sum(self._writer.counts.values())

    def add_topic(self, topic: Topic) -> None:
        """Announce a topic; needed once before its first message."""
        if topic.name in self._connections:
            raise BagError(f"topic {topic.name} is in bag {self.path} already")
        if not knows_type(topic.type):
            raise BagError(f"topic {topic.name}: the definition of {topic.type} is not known here")
        with self._telling("write to"):
            self._connections[topic.name] = self._writer.add_connection(
                topic.name, topic.type, typestore=_TYPES, offered_qos_profiles=[_offered_qos(topic)]
            )

    def add_copies(self, bag: BagReader, left_out: Collection[tuple[str, str]]) -> None:
        """Announce the topics of another bag for `copy`, even if their types are unknown here.

        Their definitions and QoS are taken from it. `left_out` are (name, type) of topics that are
        not wanted.
        """
        for connection in bag.connections:
            key = (connection.topic, connection.msgtype)
            if key not in left_out:
                definition, type_hash = _definition_of(connection)
                extension = extension_of(connection)
                self._copied[key] = self._writer.add_connection(
                    *key,
                    msgdef=definition,
                    rihs01=type_hash,
                    serialization_format=extension.serialization_format,
                    offered_qos_profiles=extension.offered_qos_profiles,
                )

    def write(self, topic_name: str, received_ns: int, data: bytes) -> None:
        """Append one serialised message."""
        if topic_name not in self._connections:
            raise BagError(f"topic {topic_name} was not announced to bag {self.path}")
        self._write(self._connections[topic_name], received_ns, data)

    def copy(self, message: BagMessage) -> None:
        """Append a message of the bag given to `add_copies`, byte for byte."""
        key = (message.topic.name, message.topic.type)
        self._write(self._copied[key], message.received_ns, message.data)

    def _write(self, connection: Connection, received_ns: int, data: bytes) -> None:
        with self._telling("write to"):
            self._writer.write(connection, received_ns, data)

    def flush(self) -> None:
        """Hand the written messages to the disk, so that no kill can lose them any more."""
        with self._telling("write to"):
            self._storage.flush()

    def close(self) -> None:
        """Write the index and ``metadata.yaml``; a full disk has room reserved for them.

        It raises `BagError` if there is no room even so, or the disk fails. What is on the disk
        stays readable.
        """
        if self._writer.storage is None:
            return
        self._reserve.release()
        try:
            with self._telling("finish"):
                try:
                    self._finish(drop=False)
                except (OSError, sqlite3.Error):
                    self._failed = True
                    self._finish(drop=True)
                    raise  # closed, but without the last messages
                sync(self.path)
        finally:
            self._release()

    def _finish(self, *, drop: bool) -> None:
        storage = self._storage
        if self._failed:
            storage.settle(self._writer.counts, drop=drop)
        try:
            self._writer.close()
        except BaseException:
            self._writer.storage = storage
            raise

    def discard(self) -> None:
        """Stop writing and remove the bag, for callers that can make it again."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._release()

    def _release(self) -> None:
        if self._lock >= 0:
            with suppress(Exception):
                self._writer.abort()
            self._reserve.release()
            os.close(self._lock)
            self._lock = -1

    @property
    def _storage(self) -> LastingMcap | LastingSqlite3:
        return cast("LastingMcap | LastingSqlite3", self._writer.storage)

    @contextmanager
    def _telling(self, doing: str) -> Iterator[None]:
        """Turn what the storages raise when the disk is full, or gone, into a `BagError`."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            self._failed = True
            text = error.strerror if isinstance(error, OSError) else error
            raise BagError(f"cannot {doing} bag {self.path}: {text}") from error

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is None:
            self.close()
        elif self.count == 0:
            self.discard()
        else:
            with suppress(BagError):  # the first error is the one to show
                self.close()


def _remove_empty(path: Path) -> None:
    """Remove a bag that nobody writes and that holds no message; refuse anything else."""
    refusal = f"{path} exists already: remove it or choose another name"
    try:
        if {file.suffix for file in path.iterdir()} - {".yaml", ".mcap", ".db3", ".db3-journal"}:
            raise BagError(refusal)
        lock = _locked(path)
    except OSError as error:
        raise BagError(refusal) from error
    try:
        with BagReader(path) as bag:
            count = bag.message_count
    except BagError as error:
        raise BagError(refusal) from error
    finally:
        os.close(lock)
    if count:
        raise BagError(refusal)
    shutil.rmtree(path)


def _locked(folder: Path) -> int:
    """Lock a folder against other writers; return the descriptor, or raise OSError if locked."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a killed process loses it
    except OSError:
        os.close(lock)
        raise
    return lock


def _offered_qos(topic: Topic) -> Qos:
    return Qos(
        QosHistory.KEEP_LAST,
        10,
        QosReliability[topic.reliability.upper()],
        QosDurability[topic.durability.upper()],
        _FOREVER,
        _FOREVER,
        QosLiveliness.AUTOMATIC,
        _FOREVER,
        False,
    )


def _definition_of(connection: Connection) -> tuple[str, str]:
    """Return the type's definition and its hash (REP 2016), from the bag if it has them."""
    definition, type_hash = connection.msgdef.data, connection.digest
    if knows_type(connection.msgtype):
        known, _ = _TYPES.generate_msgdef(connection.msgtype, ros_version=2)
        definition = definition or known
        type_hash = type_hash or _TYPES.hash_rihs01(connection.msgtype)
    # Bags from before ROS 2 Jazzy may hold neither: the messages are worth copying all the same.
    return definition, type_hash or f"RIHS01_{0:064x}"
