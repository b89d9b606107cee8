"""rosbags' two storages, written so that a full disk or a kill loses next to nothing.

Complete pieces are handed to the disk now and then, an incomplete piece that a failed write left is
cut off, and some disk space is reserved from the beginning, so that there is room to close the bag.
"""

from __future__ import annotations

import os
import struct
import tempfile
from binascii import crc32
from collections.abc import Mapping
from contextlib import suppress
from io import BufferedWriter, FileIO
from pathlib import Path

from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.enums import CompressionMode
from rosbags.rosbag2.storage_mcap import McapWriter
from rosbags.rosbag2.storage_sqlite3 import Sqlite3Writer

MOST_RESERVED = 4 << 20
"""Bytes reserved for closing a bag: its messages in memory (1 MiB of them) and its index."""


class Reserve:
    """Disk space that nobody else can use until it is released or this process ends.

    It raises `OSError` if the disk is full already, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        disk = os.statvfs(folder)
        size = min(MOST_RESERVED, disk.f_bavail * disk.f_frsize // 8)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it has no name to leave
        os.posix_fallocate(self._file.fileno(), 0, max(size, 4096))

    def release(self) -> None:
        """Give the space back."""
        self._file.close()


def sync(folder: Path, *, only: Path | None = None) -> None:
    """Wait until a folder's files, or `only` one path, are on disk, safe from a power failure."""
    for path in (*folder.iterdir(), folder, folder.parent) if only is None else (only,):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


_CHECKSUM_AT = 9 + 3 * 8
"""Offset of the checksum in a chunk: behind the record's kind and length, two times and a size."""


class LastingMcap(McapWriter):
    """An mcap file whose written chunks stay whole on the disk, whatever happens to later ones."""

    def __init__(self, path: Path, compression: CompressionMode) -> None:
        super().__init__(path, compression)
        self.bio.flush()
        self._whole, self._torn = self.bio.tell(), False

    def close_chunk(self) -> None:
        """Write the pending chunk; if that fails, it stays pending."""
        self._take_back()
        chunk, count = self.chunk, len(self.chunks)
        start, checksum = self.bio.tell(), crc32(chunk.bio.getbuffer())
        self._torn = True
        try:
            super().close_chunk()
            end = self.bio.tell()
            # rosbags leaves the checksum out. Without it, a chunk whose end a power cut filled with
            # zeros would be taken for whole.
            self.bio.seek(start + _CHECKSUM_AT)
            self.bio.write(struct.pack("<I", checksum))
            self.bio.seek(end)
            self.bio.flush()
        except BaseException:
            self.chunk = chunk
            del self.chunks[count:]
            raise
        self._whole, self._torn = self.bio.tell(), False

    def flush(self) -> None:
        """Hand the pending messages to the disk."""
        if self.chunk.msgs:
            self.close_chunk()

    def close(self, version: int, metadata: str) -> None:
        """Write the pending chunk, index and footer."""
        self._take_back()
        self._torn = True
        super().close(version, metadata)

    def settle(self, counts: dict[int, int], *, drop: bool) -> None:
        """Set `counts` to the numbers of messages, by connection, that will be in the file.

        With `drop`, the pending messages, for which there was no room, are dropped.
        """
        if drop:
            for number, messages in self.chunk.msgs.items():
                self.channel_stats[number] -= len(messages)
            self.chunk.bio.seek(0)
            self.chunk.bio.truncate()
            self.chunk.msgs.clear()
        counts.update(self.channel_stats)  # rosbags did not count the message that failed

    def abort(self) -> None:
        """Release the file; its whole chunks stay."""
        with suppress(OSError, ValueError):
            self._take_back()
            self.bio.close()

    def _take_back(self) -> None:
        """Cut off the incomplete piece that a failed write left."""
        if self._torn:
            with suppress(OSError):
                self.bio.raw.close()
            self.bio = BufferedWriter(FileIO(self.path, "r+"))
            self.bio.truncate(self._whole)
            self.bio.seek(self._whole)
            self._torn = False


class LastingSqlite3(Sqlite3Writer):
    """An sqlite3 file; its messages are safe from each `flush` on."""

    def add_connection(self, connection: Connection, offered_qos_profiles: str) -> None:
        """Add a topic, and commit it, so that it stays if there is no room for its messages."""
        super().add_connection(connection, offered_qos_profiles)
        self.conn.commit()

    def flush(self) -> None:
        """Hand the pending messages to the disk."""
        self.conn.commit()

    def settle(self, counts: dict[int, int], *, drop: bool) -> None:  # noqa: ARG002 - rolled back
        """Set `counts` to the numbers of messages, by connection, that are in the file."""
        query = "SELECT topic_id, COUNT(*) FROM messages GROUP BY topic_id"
        found = dict(self.conn.execute(query))
        counts.update((number, found.get(number, 0)) for number in counts)


class LastingWriter(Writer):
    """rosbags' writer on these storages."""

    STORAGE_PLUGINS: Mapping[StoragePlugin, type[LastingMcap | LastingSqlite3]] = {
        StoragePlugin.MCAP: LastingMcap,
        StoragePlugin.SQLITE3: LastingSqlite3,
    }
