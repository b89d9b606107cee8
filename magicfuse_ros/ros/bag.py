"""rosbag2 bags, written and read without a ROS installation.

A bag is the folder rosbag2 makes (``metadata.yaml`` beside one sqlite3 or mcap file); a bare
``.mcap`` or ``.db3`` file can be read too. Messages stay serialised (CDR) on their way in and out:
only what looks into them needs their types. What a bag calls the time of a message is when it was
received; the camera's own stamp is in the message's header (`magicfuse_ros.ros.stamps`).
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import final

from rosbags.interfaces import (
    Connection,
    ConnectionExtRosbag2,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import Reader, ReaderError, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

STORAGES: Mapping[str, StoragePlugin] = {
    "mcap": StoragePlugin.MCAP,
    "sqlite3": StoragePlugin.SQLITE3,
}
DEFAULT_STORAGE = "mcap"  # as rosbag2 itself since ROS 2 Iron

RELIABILITIES = ("reliable", "best_effort")
DURABILITIES = ("volatile", "transient_local")

_FOREVER = QosTime(0x7FFFFFFF, 0xFFFFFFFF)
_TYPES = get_typestore(Stores.ROS2_KILTED)


class BagError(RuntimeError):
    """A bag cannot be written or read; the text says which one, why, and what to do."""


@dataclass(frozen=True)
class Topic:
    """One topic of a bag.

    Attributes
    ----------
    name
        Full name, ``/image``.
    type
        ``sensor_msgs/msg/Image``.
    count
        Messages in the bag; 0 in a topic that is about to be written.
    reliability
        What its publisher offered: ``reliable`` or ``best_effort``.
    durability
        ``volatile`` or ``transient_local``.
    """

    name: str
    type: str
    count: int = 0
    reliability: str = "reliable"
    durability: str = "volatile"

    def __post_init__(self) -> None:
        if not self.name.startswith("/") or self.name.endswith("/"):
            raise ValueError(f"topic name {self.name!r}: give a full name, such as /image")
        if self.reliability not in RELIABILITIES:
            raise ValueError(f"reliability {self.reliability!r}: accepted are {RELIABILITIES}")
        if self.durability not in DURABILITIES:
            raise ValueError(f"durability {self.durability!r}: accepted are {DURABILITIES}")


@dataclass(frozen=True)
class BagMessage:
    """One message as it lies in the bag: serialised, with the time it was received (ns)."""

    topic: Topic
    received_ns: int
    data: bytes


def is_bag(path: Path) -> bool:
    """Whether `path` looks like a bag (its content is not checked)."""
    return (path / "metadata.yaml").is_file() or path.suffix in {".mcap", ".db3"}


def knows_type(message_type: str) -> bool:
    """Whether a topic of this type can be written: its definition is stored with the messages."""
    return message_type in _TYPES.fielddefs


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

    def write(self, topic_name: str, received_ns: int, data: bytes) -> None:
        """Append one serialised message."""
        if topic_name not in self._connections:
            raise BagError(f"topic {topic_name} was not announced to bag {self.path}")
        try:
            self._writer.write(self._connections[topic_name], received_ns, data)
        except OSError as error:  # a full disk
            raise BagError(f"cannot write to bag {self.path}: {error.strerror}") from error
        self.count += 1

    def close(self) -> None:
        """Write the index and ``metadata.yaml``."""
        try:
            self._writer.close()
        except OSError as error:
            raise BagError(f"cannot finish bag {self.path}: {error.strerror}") from error

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


@final
class BagReader:
    """Reads a bag; a context manager.

    Attributes
    ----------
    topics : tuple[Topic, ...]
        Sorted by name.
    start_ns, end_ns : int
        Time of the first and the last message; 0 in an empty bag.
    message_count : int
    storage : str
        ``mcap`` or ``sqlite3``.

    Raises
    ------
    BagError
        The bag is missing, damaged, or of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_file() and path.suffix == ".bag":
            raise BagError(f"{path} is a ROS 1 bag: convert it with `rosbags-convert --src {path}`")
        with _reading(path):
            self._reader = Reader(path)
            self._reader.open()
            self._topics = {
                connection.id: Topic(
                    connection.topic, connection.msgtype, connection.msgcount, *_qos_of(connection)
                )
                for connection in self._reader.connections
            }
            self.message_count = self._reader.message_count
            # rosbags counts the end one nanosecond past the last message
            self.start_ns = self._reader.start_time if self.message_count else 0
            self.end_ns = self._reader.end_time - 1 if self.message_count else 0
            files = [path] if path.is_file() else sorted(path.iterdir())
            self.storage = "mcap" if any(file.suffix == ".mcap" for file in files) else "sqlite3"
        self.topics = tuple(sorted(self._topics.values(), key=lambda topic: topic.name))

    @property
    def duration_s(self) -> float:
        """Seconds from the first message to the last."""
        return (self.end_ns - self.start_ns) / 1e9

    def topic(self, name: str) -> Topic:
        """Return the topic of this name.

        Raises
        ------
        BagError
            There is none; the text lists those there are.
        """
        for topic in self.topics:
            if topic.name == name:
                return topic
        names = ", ".join(topic.name for topic in self.topics) or "none"
        raise BagError(f"bag {self.path} has no topic {name}; it has: {names}")

    def messages(self, topics: Collection[str] | None = None) -> Iterator[BagMessage]:
        """Yield the messages in order of time; `topics` restricts them to these names.

        Raises
        ------
        BagError
            A name is not in the bag, or the bag is damaged further on.
        """
        wanted = {self.topic(name).name for name in topics} if topics is not None else None
        connections = [
            connection
            for connection in self._reader.connections
            if wanted is None or connection.topic in wanted
        ]
        if not connections:
            return
        missing = sum(connection.msgcount for connection in connections)
        with _reading(self.path):
            for connection, received_ns, data in self._reader.messages(connections):
                missing -= 1
                yield BagMessage(self._topics[connection.id], received_ns, bytes(data))
            if missing > 0:  # mcap has no checksums where its writer left them out
                raise ReaderError(f"{missing} of its messages cannot be found")

    def close(self) -> None:
        """Release the files."""
        self._reader.close()

    def __enter__(self) -> BagReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a third-party parser raises on damaged bytes into one `BagError`."""
    try:
        yield
    except BagError:
        raise
    except FileNotFoundError as error:
        if not path.exists():
            raise BagError(f"bag {path} does not exist") from error
        raise BagError(
            f"{path} is not a bag: a bag is a folder with metadata.yaml, or an .mcap or .db3 file"
        ) from error
    except PermissionError as error:
        raise BagError(f"bag {path} cannot be read: {error.strerror}") from error
    except ReaderError as error:
        if "Unrecognized storage format" in str(error):
            raise BagError(
                f"{path} is not a bag: a bag is a folder with metadata.yaml, "
                "or an .mcap or .db3 file"
            ) from error
        raise _damaged(path, error) from error
    except Exception as error:  # struct.error, apsw.Error, zlib, KeyError ... any parser error
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> BagError:
    detail = str(error).strip().splitlines()
    return BagError(
        f"bag {path} is damaged or was not closed properly "
        f"({type(error).__name__}: {detail[0] if detail else 'no detail'}); "
        "record it again, or repair it (`ros2 bag reindex`, `mcap recover`)"
    )


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


def _qos_of(connection: Connection) -> tuple[str, str]:
    """Return reliability and durability to offer: the strongest that every publisher offered."""
    extension = connection.ext
    profiles = extension.offered_qos_profiles if isinstance(extension, ConnectionExtRosbag2) else []
    best_effort = any(qos.reliability is QosReliability.BEST_EFFORT for qos in profiles)
    latched = bool(profiles) and all(
        qos.durability is QosDurability.TRANSIENT_LOCAL for qos in profiles
    )
    return (
        "best_effort" if best_effort else "reliable",
        "transient_local" if latched else "volatile",
    )
