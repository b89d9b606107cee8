"""`Journal` on a file of records that a kill, a full disk or a bad block left in any state."""

from __future__ import annotations

from fuzz.fields import Fields
from fuzz.files import folder, written

from magicfuse_ros.bags.fuse_journal import Journal, Record

ADDED = (b"s" * 16, Record({"semantic/mask": b"12345"}, "", ""))


def check(data: bytes) -> None:
    fields = Fields(data)
    path = folder() / "frames.journal"
    path.unlink(missing_ok=True)
    kept = []
    with Journal(path) as journal:
        for place in range(fields.byte() % 4):
            outputs = {fields.text(): fields.take(fields.byte()) for _ in range(fields.byte() % 3)}
            record = Record(outputs, fields.text(), fields.text())
            kept.append((fields.take(16), record))
            journal.append(place, *kept[-1])
    content = bytearray(path.read_bytes())
    whole = len(kept)
    while content and fields.left() > 3:  # damage
        at = fields.unpack("<H") % len(content)
        content[at : at + fields.byte() % 4] = fields.take(fields.byte() % 4)
    tail = fields.rest()
    written("frames.journal", bytes(content) + tail)
    with Journal(path) as journal:
        read = list(journal.read())
        assert len(read) <= whole
        assert read == kept[: len(read)]
        journal.append(len(read), *ADDED)
    with Journal(path) as journal:
        assert list(journal.read()) == [*read, ADDED]
