"""rosbag2 bags, read without a ROS installation; `magicfuse_ros.bags.writer` makes them.

A bag is the folder that rosbag2 makes (``metadata.yaml`` and one or more sqlite3 or mcap files); a
bare ``.mcap`` or ``.db3`` file can be read too. Messages stay serialised (CDR) on their way in and
out, so that only code which looks into them needs their types. The time of a message in a bag is
when it was received; the camera's own stamp is in the message's header
(`magicfuse_ros.ros.stamps`).
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, cast, final

from rosbags.interfaces import (
    Connection,
    ConnectionExtRosbag2,
    MessageDefinitionFormat,
    Qos,
    QosDurability,
    QosReliability,
)
from rosbags.rosbag2 import ReaderError
from rosbags.rosbag2.metadata import ReaderMetadata, parse_qos

from magicfuse_ros.bags.bag_files import list_files, open_file, read_metadata, unpacked
from magicfuse_ros.bags.mcap_file import McapFile, OtherFormatError
from magicfuse_ros.bags.suffixes import SUFFIXES

_Record = tuple[Connection, int, bytes]

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
    connections : tuple[Connection, ...]
        One for each topic name and type, with its definition and QoS, and its messages in all
        files.
    parts : list[tuple[str, int, int, int]]
        Name, start, end (ns) and number of messages of each file.
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
        self._stack = ExitStack()
        with _reading(path):
            if path.is_file() and path.suffix not in SUFFIXES:
                raise FileNotFoundError(path)
            try:
                self._open()
            except BaseException:
                self.close()
                raise

    def _open(self) -> None:
        """Open the files, and adopt what they say after checking it: it may have any type."""
        path, remarks = self.path, list[str]()
        metadata = read_metadata(path, remarks) if path.is_dir() else None
        files = [path] if path.is_file() else list_files(path, metadata, remarks)
        if not files:
            raise FileNotFoundError(path)
        self._storages = [
            open_file(file, self._stack, remarks, unclosed_too=metadata is None) for file in files
        ]
        # Without metadata.yaml, only the data shows it.
        self._packed = metadata is None or metadata.compression == "message"
        self.notes: Mapping[str, str] = {} if metadata is None else metadata.notes
        self.storage = "mcap" if isinstance(self._storages[0], McapFile) else "sqlite3"
        joined = self._joined()
        for said in [] if metadata is None else metadata.topics:
            self._apply(said, joined, remarks)
        self.connections, self.remarks = tuple(joined.values()), tuple(remarks)
        for connection in self.connections:
            _check_connection(connection)
        self._topics = {
            connection.id: Topic(
                connection.topic, connection.msgtype, connection.msgcount, *_qos_of(connection)
            )
            for connection in self.connections
        }
        self.topics = tuple(sorted(self._topics.values(), key=lambda topic: topic.name))
        self.parts = [
            (Path(str(storage.path)).name, *_extent(storage.metadata)) for storage in self._storages
        ]
        full = [part for part in self.parts if part[3]]
        self.message_count = _number(sum(count for *_, count in full), "message count")
        self.start_ns = _number(min((start for _, start, _, _ in full), default=0), "start")
        self.end_ns = _number(max((end for _, _, end, _ in full), default=0), "end")
        if self.end_ns < self.start_ns:
            raise ReaderError(f"it ends at {self.end_ns} ns, before it starts at {self.start_ns}")

    def _joined(self) -> dict[tuple[str, str], Connection]:
        """Join the connections of the same topic and type in all files into one."""
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
        return joined

    def _apply(
        self, said: dict[str, Any], joined: dict[tuple[str, str], Connection], remarks: list[str]
    ) -> None:
        """Adopt what metadata.yaml says about a topic."""
        topic = said["topic_metadata"]
        key = _full_name(topic["name"]), topic["type"]
        profiles: list[Qos] | None = None
        with suppress(Exception):  # whoever edited it may have made anything of it
            profiles = parse_qos(topic.get("offered_qos_profiles", []))
        if profiles is None or not all(map(_is_qos, profiles)):
            remarks.append(f"the QoS of {key[0]} in metadata.yaml is damaged")
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
            remarks.append(
                f"metadata.yaml counts {said.get('message_count')!r:.40} messages of {key[0]}: "
                f"there are {connection.msgcount}"
            )
        serialization = extension_of(connection).serialization_format
        kept = profiles or extension_of(connection).offered_qos_profiles
        joined[key] = connection._replace(
            ext=ConnectionExtRosbag2(serialization, kept),
            digest=connection.digest or (digest if isinstance(digest, str) else ""),
        )

    @property
    def duration_s(self) -> float:
        """Seconds from the first message to the last."""
        return (self.end_ns - self.start_ns) / 1e9

    def topic(self, name: str) -> Topic:
        """Return the topic of this name; a `BagError` lists the bag's topics if there is none."""
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
        are asked for. It raises `BagError` if a name is not in the bag, or the bag is damaged
        further on.
        """
        wanted = {self.topic(name).name for name in topics} if topics is not None else None
        connections = [
            connection
            for connection in self.connections
            if wanted is None or connection.topic in wanted
        ]
        if not connections:
            return
        missing = sum(connection.msgcount for connection in connections) if start_ns == 0 else 0
        with _reading(self.path):
            for connection, received_ns, data in self._merged(connections, start_ns):
                missing -= 1
                if not isinstance(data, bytes):  # SQLite keeps any kind of value in any column
                    raise ReaderError(f"a message is a {type(data).__name__}, not bytes")
                time_ns = _number(received_ns, "time of a message")
                yield BagMessage(self._topics[connection.id], time_ns, data)
            if missing > 0:  # mcap has no checksums where its writer left them out
                raise ReaderError(f"{missing} of its messages cannot be found")

    def _merged(self, connections: Collection[Connection], start_ns: int) -> Iterator[_Record]:
        """Yield (connection, time in ns, serialised message) of all files in order of time."""
        wanted = {connection.id: connection for connection in connections}
        streams = [
            self._of_one_file(number, wanted, start_ns)
            for number, storage in enumerate(self._storages)
            if storage.metadata.message_count
        ]
        for connection, time, data in heapq.merge(*streams, key=itemgetter(1)):
            if connection is not None:
                yield connection, time, data

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
            message = unpacked(data) if self._packed else data
            yield wanted[self._ids[number, connection.id]], time, message

    def close(self) -> None:
        """Release the files."""
        self._stack.close()

    def __enter__(self) -> BagReader:
        return self

    def __exit__(self, *_error: object) -> None:
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
        raise BagError(
            f"bag {path} is damaged or was not closed properly "
            f"({type(error).__name__}: {(str(error).strip() or 'no detail').splitlines()[0]}); "
            "record it again, or repair it (`ros2 bag reindex`, `mcap recover`)"
        ) from error


def _number(value: object, what: str) -> int:
    """Return a count or a time (ns), which the storages keep in 64 bits with a sign."""
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ReaderError(f"its {what} is {value!r:.60}; accepted: 0 to 2^63 - 1")
    return value


def _check_connection(connection: Connection) -> None:
    """Check the types of what rosbags read from the files, which it does not check itself."""
    _number(connection.msgcount, "message count")
    texts = (connection.topic, connection.msgtype, connection.digest, connection.msgdef.data)
    for text in (*texts, extension_of(connection).serialization_format):
        if not isinstance(text, str):
            raise ReaderError(f"a topic has {text!r:.60} for a text")
    if not all(map(_is_qos, extension_of(connection).offered_qos_profiles)):
        raise ReaderError(f"topic {connection.topic!r:.60} has a QoS that is none")


def extension_of(connection: Connection) -> ConnectionExtRosbag2:
    """Return what rosbag2 adds to a connection: serialisation and QoS."""
    return cast("ConnectionExtRosbag2", connection.ext)


def _is_qos(profile: Qos) -> bool:
    """Whether the numbers of a QoS are numbers: rosbags takes any values from a bag."""
    times = (profile.deadline, profile.lifespan, profile.liveliness_lease_duration)
    numbers = [profile.depth, *(number for time in times for number in time)]
    return all(isinstance(number, int) for number in numbers)


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


def _qos_of(connection: Connection) -> tuple[str, str]:
    """Return the reliability and durability to offer: the strongest that all publishers offered."""
    profiles = extension_of(connection).offered_qos_profiles
    best_effort = any(qos.reliability is QosReliability.BEST_EFFORT for qos in profiles)
    latched = bool(profiles) and all(
        qos.durability is QosDurability.TRANSIENT_LOCAL for qos in profiles
    )
    return (
        "best_effort" if best_effort else "reliable",
        "transient_local" if latched else "volatile",
    )
