"""What `bag fuse` has done so far: one record a frame, in a file that survives a kill.

A record is appended when its frame is done. It names the input message that it was made from and
carries a checksum, so that whoever reads the file stops at a record that was torn by a kill or a
full disk, and goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, final

from magicfuse_ros.bags.reader import BagMessage

_MAGIC = b"MFJ1"
_HEAD = struct.Struct("<4sQ16s16sIQ")
"""Magic, place of the frame, input digest, checksum, bytes of the description, of the messages."""
_DIGEST_BYTES = 16
_SYNC_EVERY_S = 5.0


@dataclass(frozen=True)
class Record:
    """What became of one image message.

    Attributes
    ----------
    outputs
        Serialised messages by the output's name, such as ``semantic/mask``; empty where the frame
        was left out.
    reason, text
        Why it was left out: machine-readable, and in words. Empty otherwise.
    """

    outputs: dict[str, bytes] = field(default_factory=dict)
    reason: str = ""
    text: str = ""


def digest_of(message: BagMessage) -> bytes:
    """Return 16 bytes that tell this input message from any other."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    digest.update(message.topic.name.encode() + b"\0" + struct.pack("<q", message.received_ns))
    digest.update(message.data)
    return digest.digest()


@final
class Journal:
    """The file of records; a context manager.

    First `read` it to its end, then `append`. One process at a time has it open.

    Parameters
    ----------
    path
        The file; made where it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = path.open("r+b" if path.exists() else "x+b")
        self._synced = time.monotonic()

    def read(self) -> Iterator[tuple[bytes, Record]]:
        """Yield (digest of the input message, record) of each whole record, from the first on.

        The file is then where the next record belongs, also when the caller stops early: what
        lies behind is no longer of use and goes with the next `append`.
        """
        self._file.seek(0)
        size = os.fstat(self._file.fileno()).st_size
        place = start = 0
        while True:
            head = self._file.read(_HEAD.size)
            read = self._body(head, place, size - start - len(head))
            if read is None:
                self._file.seek(start)
                return
            source, record, length = read
            yield source, record
            start += _HEAD.size + length
            place += 1

    def append(self, place: int, source: bytes, record: Record) -> None:
        """Write the record of the frame at `place` (0, 1 ... in the order of the bag)."""
        names = [[name, len(data)] for name, data in record.outputs.items()]
        description = json.dumps([names, record.reason, record.text]).encode()
        body = [description, *record.outputs.values()]
        length = sum(map(len, record.outputs.values()))
        check = _checksum((place, len(description), length), source, body)
        head = _HEAD.pack(_MAGIC, place, source, check, len(description), length)
        self._file.truncate()
        for part in (head, *body):
            self._file.write(part)
        # To the kernel at once: a killed process loses nothing. To the disk now and then, against
        # a power failure.
        self._file.flush()
        if time.monotonic() - self._synced > _SYNC_EVERY_S:
            self.sync()

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def _body(self, head: bytes, place: int, left: int) -> tuple[bytes, Record, int] | None:
        """Return input digest, record and length of the body behind `head`; None if damaged."""
        if len(head) < _HEAD.size:
            return None
        magic, stored_place, source, check, described, length = _HEAD.unpack(head)
        if magic != _MAGIC or stored_place != place or described + length > left:
            return None
        description = self._file.read(described)
        data = self._file.read(length)
        if check != _checksum((place, described, length), source, [description, data]):
            return None
        try:
            names, reason, text = json.loads(description)
            outputs, at = {}, 0
            for name, size in names:
                outputs[name] = data[at : at + size]
                at += size
        except (ValueError, TypeError, RecursionError):  # the checksum is right: nobody's accident
            return None
        return source, Record(outputs, reason, text), described + length

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def _checksum(numbers: tuple[int, int, int], source: bytes, body: list[bytes]) -> bytes:
    digest = hashlib.blake2b(struct.pack("<3Q", *numbers) + source, digest_size=_DIGEST_BYTES)
    for part in body:
        digest.update(part)
    return digest.digest()
