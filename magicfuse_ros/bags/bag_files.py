"""The files of a bag, whatever state they are in.

``metadata.yaml`` says which files belong to a bag, with what QoS its topics are to be offered, and
how it is compressed. If it is missing, damaged, or contradicts the files, the files are right, and
a remark says so: a sentence for the user about what is wrong but does no harm.
"""

from __future__ import annotations

import shutil
import sqlite3
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from rosbags.rosbag2 import ReaderError
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

Storage = McapFile | Sqlite3Reader


@dataclass
class Metadata:
    """The parts of metadata.yaml that are used."""

    files: list[str]
    compression: str
    notes: dict[str, str]
    topics: list[dict[str, Any]]


def read_metadata(folder: Path, remarks: list[str]) -> Metadata | None:
    """Read metadata.yaml; None if there is none, or a damaged one beside files of messages."""
    path = folder / "metadata.yaml"
    if not path.is_file():
        remarks.append("metadata.yaml is missing: all is taken from the messages' files")
        return None
    try:
        return _metadata_of(load_yaml(path))
    except (ReaderError, yaml.YAMLError, UnicodeDecodeError) as error:
        if not _found(folder):
            raise
        text = one_line(error)[:200]
        remarks.append(f"metadata.yaml is damaged ({text}): all is taken from the messages' files")
        return None


def list_files(folder: Path, metadata: Metadata | None, remarks: list[str]) -> list[Path]:
    """Return the files of messages of a folder.

    It raises `OtherFormatError` if some are missing, or nothing says which of several recordings is
    meant.
    """
    found = _found(folder)
    if metadata is None:
        recordings = {file.name.partition(".")[0].rstrip("0123456789") for file in found}
        if len(recordings) > 1:
            raise OtherFormatError(
                "has no metadata.yaml and files of several recordings: give one of the files"
            )
        return found
    files: list[Path] = []
    missing: list[Path] = []
    for name in metadata.files:
        # Only the last part of the name is used, so that a bag reads nothing outside of its
        # folder. An absolute path names the place where the bag was recorded.
        file = folder / PureWindowsPath(name).name
        packed = file.with_name(f"{file.name}{_ZSTD}")
        file = file if file.is_file() or not packed.is_file() else packed
        (files if file.is_file() else missing).append(file)
    if not files and found:
        remarks.append("metadata.yaml lists none of the files here: all are taken")
        return found
    if missing:
        names = [str(file) for file in missing]
        raise OtherFormatError(f"is not whole. Some database files are missing: {names}")
    return list(dict.fromkeys(files))


def open_file(file: Path, stack: ExitStack, remarks: list[str], *, unclosed_too: bool) -> Storage:
    """Open a file of messages until `stack` is closed; `unclosed_too` is that of `McapFile`."""
    name = file.name
    if file.suffix == _ZSTD:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="magicfuse_bag_")))
        with zstd.open(file, "rb") as packed, (folder / file.stem).open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
        file = folder / file.stem
    storage: Storage
    if file.suffix == ".mcap":
        storage = McapFile(file, unclosed_too=unclosed_too)
    else:
        if _roll_back(file):
            remarks.append(f"{name} was not closed: its last whole state is read")
        storage = Sqlite3Reader(file)
    storage.open()
    stack.callback(storage.close)
    if isinstance(storage, McapFile) and storage.unclosed:
        count = storage.metadata.message_count
        remarks.append(f"{name} was not closed: its {count} whole messages are read")
    return storage


def unpacked(data: bytes) -> bytes:
    """Return a message, decompressed if it is compressed."""
    # CDR, unlike Zstandard, begins with a zero.
    return bytes(zstd.decompress(data)) if data[:4] == _ZSTD_MAGIC else data


def _found(folder: Path) -> list[Path]:
    """Return the files of messages in a folder, in the order in which a recorder splits them."""
    files = [file for file in folder.iterdir() if file.name.removesuffix(_ZSTD).endswith(SUFFIXES)]
    hidden = [file for file in files if file.name.startswith(".")]  # of macOS: ._drive.mcap
    return sorted(set(files) - set(hidden), key=lambda file: (len(file.name), file.name))


def _metadata_of(document: object) -> Metadata:
    """Check the parts of metadata.yaml that are used; `ReaderError` if one has another type."""
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
    return Metadata(files, str(root.get("compression_mode") or "").lower(), notes, topics)


def _is_topic(said: object) -> bool:
    topic = said.get("topic_metadata") if isinstance(said, dict) else None
    return isinstance(topic, dict) and all(
        isinstance(topic.get(name), str) and topic[name] for name in ("name", "type")
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
