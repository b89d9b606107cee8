"""A new bag: messages of one's own, and those of another bag as they are."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import final

from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from magicfuse_ros.bags.reader import (
    BagError,
    BagMessage,
    BagReader,
    Topic,
    profiles_of,
    serialization_of,
)

STORAGES: Mapping[str, StoragePlugin] = {
    "mcap": StoragePlugin.MCAP,
    "sqlite3": StoragePlugin.SQLITE3,
}
DEFAULT_STORAGE = "mcap"  # as rosbag2 itself since ROS 2 Iron

_FOREVER = QosTime(0x7FFFFFFF, 0xFFFFFFFF)
_TYPES = get_typestore(Stores.ROS2_KILTED)


def knows_type(message_type: str) -> bool:
    """Whether a topic of this type can be written: its definition is stored with the messages."""
    return message_type in _TYPES.fielddefs


def canonical(message_type: str, data: bytes) -> bytes:
    """Return a serialised message of a known type with zeros for padding.

    DDS libraries leave whatever was in memory between fields, so that the same message serialised
    twice may differ in bytes that mean nothing.
    """
    return bytes(_TYPES.serialize_cdr(_TYPES.deserialize_cdr(data, message_type), message_type))


@final
class BagWriter:
    """Writes a new bag; a context manager that leaves no half-written bag behind an exception.

    Parameters
    ----------
    path
        Folder to make. It must not exist.
    storage
        ``mcap`` or ``sqlite3``.

    Raises
    ------
    BagError
        The path exists or cannot be made.
    ValueError
        Unknown storage.
    """

    def __init__(self, path: Path, storage: str = DEFAULT_STORAGE) -> None:
        if storage not in STORAGES:
            raise ValueError(f"storage {storage!r}: accepted are {', '.join(STORAGES)}")
        if path.exists():
            raise BagError(f"{path} exists already: remove it or choose another name")
        self.path = path
        self.count = 0
        self._connections: dict[str, Connection] = {}
        self._copied: dict[tuple[str, str], Connection] = {}
        try:
            # Version 9 is what rosbag2 of Jazzy and newer reads and writes.
            self._writer = Writer(path, version=9, storage_plugin=STORAGES[storage])
            self._writer.open()
        except OSError as error:
            raise BagError(f"cannot write bag {path}: {error.strerror}") from error

    def add_topic(self, topic: Topic) -> None:
        """Announce a topic; needed once before its first message."""
        if topic.name in self._connections:
            raise BagError(f"topic {topic.name} is in bag {self.path} already")
        if not knows_type(topic.type):
            raise BagError(f"topic {topic.name}: the definition of {topic.type} is not known here")
        self._connections[topic.name] = self._writer.add_connection(
            topic.name, topic.type, typestore=_TYPES, offered_qos_profiles=[_offered_qos(topic)]
        )

    def add_copies(self, bag: BagReader, left_out: Collection[tuple[str, str]]) -> None:
        """Announce the topics of another bag for `copy`, with types that are unknown here too.

        Parameters
        ----------
        bag
            Where they come from, with their definitions and QoS.
        left_out
            (name, type) of topics that are not wanted.
        """
        kept: dict[tuple[str, str], list[Connection]] = {}
        for connection in bag.connections:
            key = (connection.topic, connection.msgtype)
            if key not in left_out:
                kept.setdefault(key, []).append(connection)
        for key, connections in kept.items():
            qos = [profile for connection in connections for profile in profiles_of(connection)]
            definition, type_hash = _definition_of(connections[0])
            self._copied[key] = self._writer.add_connection(
                *key,
                msgdef=definition,
                rihs01=type_hash,
                serialization_format=serialization_of(connections[0]),
                offered_qos_profiles=qos,
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

    def add_note(self, name: str, text: str) -> None:
        """Keep a text in the bag's ``metadata.yaml``; see `BagReader.notes`."""
        self._writer.set_custom_data(name, text)

    def _write(self, connection: Connection, received_ns: int, data: bytes) -> None:
        try:
            self._writer.write(connection, received_ns, data)
        except OSError as error:  # a full disk
            raise BagError(f"cannot write to bag {self.path}: {error.strerror}") from error
        except sqlite3.Error as error:  # the same, in the other storage
            raise BagError(f"cannot write to bag {self.path}: {error}") from error
        self.count += 1

    def close(self) -> None:
        """Write the index and ``metadata.yaml``; a bag that cannot get them is removed."""
        try:
            self._writer.close()
        except (OSError, sqlite3.Error) as error:
            self.discard()
            raise BagError(f"cannot finish bag {self.path}: {error}") from error

    def discard(self) -> None:
        """Stop writing and remove what was written."""
        with suppress(Exception):  # whatever made us discard it is the error to show
            self._writer.abort()
        shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


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
    """Return the type's definition and its hash (REP 2016), from the bag where it has them."""
    definition, type_hash = connection.msgdef.data, connection.digest
    if knows_type(connection.msgtype):
        known, _ = _TYPES.generate_msgdef(connection.msgtype, ros_version=2)
        definition = definition or known
        type_hash = type_hash or _TYPES.hash_rihs01(connection.msgtype)
    # Bags from before ROS 2 Jazzy may hold neither: the messages are worth copying all the same.
    return definition, type_hash or f"RIHS01_{0:064x}"
