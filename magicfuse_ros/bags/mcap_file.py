"""Reads an mcap file, even one that was never closed.

rosbags reads mcap files that have a footer and whose messages are indexed or in order of time.
Files from the field may have neither: the recorder was killed, the robot lost power, or another
tool wrote them. Such a file is scanned once, record by record (https://mcap.dev/spec), up to the
first record that is not whole.
"""

from __future__ import annotations

import heapq
import os
import struct
from collections import defaultdict
from collections.abc import Collection, Generator, Iterator
from io import BytesIO
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO, cast

from rosbags.interfaces import (
    Connection,
    ConnectionExtRosbag2,
    MessageDefinition,
    MessageDefinitionFormat,
)
from rosbags.rosbag2 import ReaderError
from rosbags.rosbag2.storage_mcap import (
    MAXSIZE,
    Channel,
    ChunkInfo,
    McapReader,
    Schema,
    Statistics,
    decompress,
    get_qos,
    read_bytes,
    read_exact,
    read_sized,
    read_string,
)

_MAGIC = b"\x89MCAP0\r\n"
_FOOTER = b"\x02\x14\x00\x00\x00\x00\x00\x00\x00"
_FOOTER_BYTES = len(_FOOTER) + 20 + len(_MAGIC)
_HEADER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK = 0x01, 0x03, 0x04, 0x05, 0x06
_ENDS = (0x00, 0x02, 0x0F)
"""Kinds of record that end a scan: zeros (from a power failure), footer, end of the data."""
_FORMATS = {
    "ros2msg": MessageDefinitionFormat.MSG,
    "ros2idl": MessageDefinitionFormat.IDL,
    "omgidl": MessageDefinitionFormat.IDL,
}


class OtherFormatError(ReaderError):
    """A whole file that is no ROS 2 bag; the text says what it is and what to do."""


class McapFile(McapReader):
    """Reads one mcap file.

    It is `unclosed` if it has no footer: it is still being written, or its writer was killed. With
    `unclosed_too`, such a file is read up to its last whole record; otherwise it raises.
    """

    def __init__(self, path: Path, *, unclosed_too: bool) -> None:
        super().__init__(path)
        self._unclosed_too = unclosed_too
        self.unclosed = False
        # Messages outside of chunks: time, offset and size of the record's content, channel.
        self._loose: list[tuple[int, int, int, int]] = []

    def _open(self) -> None:
        file = self._file
        size = os.fstat(file.fileno()).st_size
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ReaderError("it is empty" if size == 0 else "it does not begin as an mcap file")
        if file.read(1) != bytes([_HEADER]):
            raise ReaderError("it has no header")
        profile = read_string(BytesIO(read_sized(file)))
        if profile not in ("ros2", ""):
            raise OtherFormatError(
                f"holds messages of the profile {profile!r:.40}; accepted: ros2; convert it, for "
                "ROS 1 with `rosbags-convert`"
            )
        self.data_start = file.tell()
        self.statistics = self._read_summary(size) or self._scan()
        counts = self.statistics.channel_message_counts
        self.connections = [
            each._replace(msgcount=counts.get(each.id, 0)) for each in self.connections
        ]
        count, start, end = self.statistics[0], self.statistics.start_time, self.statistics.end_time
        self.metadata = self.metadata._replace(
            duration=end - start + 1 if count else 0,
            start_time=start if count else MAXSIZE,
            end_time=end + 1 if count else 0,
            message_count=count,
        )

    @property
    def _file(self) -> BinaryIO:
        return cast("BinaryIO", self.bio)  # it is open while anything is read

    def _read_summary(self, size: int) -> Statistics | None:
        """Read the summary at the file's end; None if the file has to be scanned instead."""
        file = self._file
        file.seek(max(size - _FOOTER_BYTES, self.data_start))
        footer = file.read()
        if not (footer.startswith(_FOOTER) and footer.endswith(_MAGIC)):
            if not self._unclosed_too:
                raise ReaderError("it has no end")
            self.unclosed, self.data_end = True, size
            return None
        footer_start = size - _FOOTER_BYTES
        (summary_start,) = struct.unpack_from("<Q", footer, len(_FOOTER))
        self.data_end = summary_start or footer_start
        if not summary_start:
            return None
        if not self.data_start <= summary_start <= footer_start:
            raise ReaderError("its summary is outside of it")
        try:
            self.read_index()
        except KeyError:  # a definition in a language that rosbags does not know
            self.statistics = None
        said = self.statistics
        if said is None or not self.connections or (said.message_count and not self.chunks):
            return None
        return said

    def _scan(self) -> Statistics:
        """Find channels, chunks and messages in the data itself."""
        self.schemas.clear()
        self.channels.clear()
        self.connections.clear()
        self.chunks.clear()
        counts: dict[int, int] = defaultdict(int)
        file = self._file
        try:
            for kind, at, size in _records(file, self.data_start, self.data_end):
                if kind in _ENDS:
                    break
                if kind == _CHUNK:
                    chunk = self._read_chunk(read_exact(file, size), at)
                    self.chunks.append(chunk)
                    for channel, count in chunk.channel_count.items():
                        counts[channel] += count
                elif kind == _MESSAGE:
                    channel, time = _channel_and_time(read_exact(file, 22))
                    self._loose.append((time, at, size, channel))
                    counts[channel] += 1
                elif kind in (_SCHEMA, _CHANNEL):
                    self._declare(kind, read_exact(file, size))
        except Exception:
            if not self.unclosed:
                raise
        full = [chunk for chunk in self.chunks if chunk.channel_count]
        times = [loose[0] for loose in self._loose]
        start = min([*times, *(chunk.message_start_time for chunk in full)], default=MAXSIZE)
        end = max([*times, *(chunk.message_end_time for chunk in full)], default=0)
        known = {channel: count for channel, count in counts.items() if channel in self.channels}
        total = sum(known.values())
        if self.statistics is not None:  # of a summary without index: it counts what is missing
            total = max(total, self.statistics.message_count)
        sizes = len(self.schemas), len(self.channels), 0, 0, len(self.chunks)
        return Statistics(total, *sizes, start, end, known)

    def _read_chunk(self, content: bytes, at: int) -> ChunkInfo:
        """Find the channels, and count the messages, in a chunk's records."""
        start, end, unpacked, crc = struct.unpack_from("<QQQI", content)
        head = BytesIO(content[28:])
        compression = read_string(head)
        (packed,) = struct.unpack("<Q", read_exact(head, 8))
        data = decompress(read_exact(head, packed), compression, unpacked, crc)
        counts: dict[int, int] = defaultdict(int)
        times = []
        records = BytesIO(data)
        for kind, _, size in _records(records, 0, len(data)):
            if kind == _MESSAGE:
                channel, time = _channel_and_time(read_exact(records, 22))
                counts[channel] += 1
                times.append(time)
            elif kind in (_SCHEMA, _CHANNEL):
                self._declare(kind, read_exact(records, size))
        if times:
            start, end = min(times), max(times)
        return ChunkInfo(
            start, end, at - 9, 9 + len(content), {}, 0, compression, packed, unpacked, dict(counts)
        )

    def _declare(self, kind: int, content: bytes) -> None:
        record = BytesIO(content)
        (number,) = struct.unpack("<H", read_exact(record, 2))
        if kind == _SCHEMA:
            texts = read_string(record), read_string(record), read_string(record)
            self.schemas[number] = Schema(number, *texts)
            return
        (schema_number,) = struct.unpack("<H", read_exact(record, 2))
        schema = self.schemas.get(schema_number, Schema(0, "__schemaless__", "", ""))
        topic, encoding, metadata = read_string(record), read_string(record), read_bytes(record)
        if number in self.channels:
            return
        self.channels[number] = Channel(number, schema.name, topic, encoding, metadata)
        definition = MessageDefinition(
            _FORMATS.get(schema.encoding, MessageDefinitionFormat.NONE), schema.data
        )
        extension = ConnectionExtRosbag2(encoding, get_qos(metadata))
        self.connections.append(
            Connection(number, topic, schema.name, definition, "", 0, extension, self)
        )

    def messages(
        self, connections: Collection[Connection], start: int | None = None, stop: int | None = None
    ) -> Generator[tuple[Connection, int, bytes], None, None]:
        """Yield (connection, time in ns, serialised message) in order of time."""
        wanted = {connection.id: connection for connection in connections}
        loose = (
            (wanted[channel], time, self._content(at + 22, size - 22))
            for time, at, size, channel in sorted(self._loose)
            if channel in wanted and (start or 0) <= time < (MAXSIZE if stop is None else stop)
        )
        indexed = super().messages(connections, start, stop) if self.chunks else iter(())
        yield from heapq.merge(indexed, loose, key=itemgetter(1))

    def _content(self, at: int, size: int) -> bytes:
        self._file.seek(at)
        return read_exact(self._file, size)


def _records(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield kind, and offset and size of the content, of each record; `file` is at the content.

    It raises `ReaderError` if a record is not whole.
    """
    at = start
    while at < end:
        file.seek(at)
        kind, size = struct.unpack("<BQ", read_exact(file, 9))
        at += 9
        if size > end - at:
            raise ReaderError(f"a record of {size} bytes at {at} is cut")
        if kind == _MESSAGE and size < 22:
            raise ReaderError(f"a message of {size} bytes")
        yield kind, at, size
        at += size


def _channel_and_time(head: bytes) -> tuple[int, int]:
    channel, _, time, _ = struct.unpack("<HIQQ", head)
    return channel, time
