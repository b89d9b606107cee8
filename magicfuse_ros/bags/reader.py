"""rosbag2 bags, read without a ROS installation; `magicfuse_ros.bags.writer` makes them.

A bag is the folder that rosbag2 makes (``metadata.yaml`` and one or more sqlite3 or mcap files); a
bare ``.mcap`` or ``.db3`` file can be read too. Messages stay serialised (CDR) on their way in and
out, so that only code which looks into them needs their types. The time of a message in a bag is
when it was received; the camera's own stamp is in the message's header
(`magicfuse_ros.ros.stamps`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import final

from rosbags.interfaces import Connection, Qos, QosDurability, QosReliability
from rosbags.rosbag2 import ReaderError

from magicfuse_ros.bags.bag_files import BagFiles, extension_of, is_qos
from magicfuse_ros.bags.mcap_file import OtherFormatError
from magicfuse_ros.bags.suffixes import SUFFIXES

RELIABILITIES = ("reliable", "best_effort")
DURABILITIES = ("volatile", "transient_local")


class BagError(RuntimeError):
    """A bag cannot be written or read; the text says which one, why, and what to do."""


@dataclass(frozen=True)
class Topic:
    """One topic of a bag.

    Attributes
    ----------
    name
        Full name, such as ``/image``.
    type
        Such as ``sensor_msgs/msg/Image``.
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
    """One message of a bag: serialised, with the time in ns at which it was received."""

    topic: Topic
    received_ns: int
    data: bytes


@final
class BagReader:
    r"""Reads a bag; a context manager.

    It reads all that can be read: also a bag whose ``metadata.yaml`` is missing or contradicts its
    files, one whose recorder was killed, and split or compressed ones.

    Attributes
    ----------
    topics : tuple[Topic, ...]
        Sorted by name.
    start_ns, end_ns : int
        Time of the first and the last message; 0 in an empty bag.
    message_count : int
    storage : str
        ``mcap`` or ``sqlite3``.
    notes : Mapping[str, str]
        Texts that the bag's writer left in ``metadata.yaml`` (rosbag2's custom_data).
    remarks : tuple[str, ...]
        Sentences about what is wrong with the bag but does no harm, such as a missing
        ``metadata.yaml`` or a recorder that was killed.

    Raises
    ------
    BagError
        The bag is missing, damaged, or of another format.

    Examples
    --------
    >>> import tempfile
    >>> from magicfuse_ros.bags.writer import BagWriter
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name) / "talk"
    >>> with BagWriter(path) as bag:
    ...     bag.add_topic(Topic("/chatter", "std_msgs/msg/String"))
    ...     for second in range(3):
    ...         bag.write("/chatter", second * 10**9, b"\0\1\0\0\3\0\0\0hi\0")
    >>> with BagReader(path) as bag:
    ...     [message.received_ns for message in bag.messages(["/chatter"])]
    [0, 1000000000, 2000000000]
    >>> folder.cleanup()
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_file() and path.suffix == ".bag":
            raise BagError(f"{path} is a ROS 1 bag: convert it with `rosbags-convert --src {path}`")
        with _reading(path):
            if path.is_file() and path.suffix not in SUFFIXES:
                raise FileNotFoundError(path)
            self._files = BagFiles(path)
            try:
                self._describe()
            except BaseException:
                self._files.close()
                raise

    def _describe(self) -> None:
        """Adopt what the files say, after checking it, since it may have any type."""
        files = self._files
        for connection in files.connections:
            _check_connection(connection)
        self._topics = {
            connection.id: Topic(
                connection.topic, connection.msgtype, connection.msgcount, *_qos_of(connection)
            )
            for connection in files.connections
        }
        self.topics = tuple(sorted(self._topics.values(), key=lambda topic: topic.name))
        self.message_count = _number(files.message_count, "message count")
        self.start_ns = _number(files.start_ns, "start")
        self.end_ns = _number(files.end_ns, "end")
        if self.end_ns < self.start_ns:
            raise ReaderError(f"it ends at {self.end_ns} ns, before it starts at {self.start_ns}")
        self.notes, self.storage = files.notes, files.storage
        self.remarks = tuple(files.remarks)

    @property
    def connections(self) -> tuple[Connection, ...]:
        """One connection for each topic and type, with its definition and QoS."""
        return tuple(self._files.connections)

    @property
    def duration_s(self) -> float:
        """Seconds from the first message to the last."""
        return (self.end_ns - self.start_ns) / 1e9

    def topic(self, name: str) -> Topic:
        """Return the topic of this name.

        Raises
        ------
        BagError
            There is none; the message lists the topics of the bag.
        """
        for topic in self.topics:
            if topic.name == name:
                return topic
        names = ", ".join(topic.name for topic in self.topics) or "none"
        raise BagError(f"bag {self.path} has no topic {name}; it has: {names}")

    def messages(
        self, topics: Collection[str] | None = None, start_ns: int = 0
    ) -> Iterator[BagMessage]:
        """Yield the messages in order of time, from `start_ns` on.

        `topics` restricts them to these names. Messages that are missing are noticed only where all
        are asked for.

        Raises
        ------
        BagError
            A name is not in the bag, or the bag is damaged further on.
        """
        wanted = {self.topic(name).name for name in topics} if topics is not None else None
        connections = [
            connection
            for connection in self._files.connections
            if wanted is None or connection.topic in wanted
        ]
        if not connections:
            return
        missing = sum(connection.msgcount for connection in connections) if start_ns == 0 else 0
        with _reading(self.path):
            for connection, received_ns, data in self._files.messages(connections, start_ns):
                missing -= 1
                if not isinstance(data, bytes):  # SQLite keeps any kind of value in any column
                    raise ReaderError(f"a message is a {type(data).__name__}, not bytes")
                time_ns = _number(received_ns, "time of a message")
                yield BagMessage(self._topics[connection.id], time_ns, data)
            if missing > 0:  # mcap has no checksums where its writer left them out
                raise ReaderError(f"{missing} of its messages cannot be found")

    def close(self) -> None:
        """Release the files."""
        self._files.close()

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
    except OtherFormatError as error:
        raise BagError(f"bag {path} {error}") from error
    except Exception as error:  # struct.error, apsw.Error, zlib, KeyError ... any parser error
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> BagError:
    detail = str(error).strip().splitlines()
    return BagError(
        f"bag {path} is damaged or was not closed properly "
        f"({type(error).__name__}: {detail[0] if detail else 'no detail'}); "
        "record it again, or repair it (`ros2 bag reindex`, `mcap recover`)"
    )


def _number(value: object, what: str) -> int:
    """Return a count or a time (ns), which the storages keep in 64 bits with a sign."""
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ReaderError(f"its {what} is {value!r:.60}; accepted: 0 to 2^63 - 1")
    return value


def _check_connection(connection: Connection) -> None:
    """Check the types of what rosbags read from the files, which it does not check itself."""
    _number(connection.msgcount, "message count")
    texts = (connection.topic, connection.msgtype, connection.digest, connection.msgdef.data)
    for text in (*texts, serialization_of(connection)):
        if not isinstance(text, str):
            raise ReaderError(f"a topic has {text!r:.60} for a text")
    if not all(map(is_qos, profiles_of(connection))):
        raise ReaderError(f"topic {connection.topic!r:.60} has a QoS that is none")


def serialization_of(connection: Connection) -> str:
    """Return how a connection's messages are serialised: ``cdr`` in almost every bag."""
    return extension_of(connection).serialization_format


def profiles_of(connection: Connection) -> list[Qos]:
    """Return the QoS that a connection's publishers offered; empty if the bag does not say."""
    return extension_of(connection).offered_qos_profiles


def _qos_of(connection: Connection) -> tuple[str, str]:
    """Return the reliability and durability to offer: the strongest that all publishers offered."""
    profiles = profiles_of(connection)
    best_effort = any(qos.reliability is QosReliability.BEST_EFFORT for qos in profiles)
    latched = bool(profiles) and all(
        qos.durability is QosDurability.TRANSIENT_LOCAL for qos in profiles
    )
    return (
        "best_effort" if best_effort else "reliable",
        "transient_local" if latched else "volatile",
    )
