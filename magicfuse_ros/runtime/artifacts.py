"""Compiled networks kept on disk: content-keyed, checked on every load, written atomically.

An entry is a folder named after its key, with the files of one artifact and a manifest of their
sizes and hashes. An entry that does not agree with its manifest, was made from something else, or
belongs to another user is made again. Nothing depends on the cache: where its folder cannot be read
or written, a start takes longer, and that is all.

When the cache holds more than `LIMIT_VARIABLE` megabytes, the entries that have not been used for
longest are removed, except those that a living process has loaded or stored.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from magicfuse_ros.hashing import file_hash
from magicfuse_ros.messages import one_line
from magicfuse_ros.resources import user_cache
from magicfuse_ros.runtime.contract import Progress

_FORMAT = 1
_MANIFEST = "manifest.json"
_POLL_S = 0.1
_TELL_S = 5.0

LIMIT_VARIABLE = "MAGICFUSE_CACHE_MB"
"""Environment variable with the most that the cache may hold, in megabytes of 10^6 bytes."""
DEFAULT_LIMIT_MB = 10_000

_in_use: dict[Path, int] = {}
"""Entry → descriptor with a shared lock on its manifest, held for as long as this process lives."""

Key = Mapping[str, str]
"""Everything that an artifact depends on, by name."""


class ArtifactCache:
    """A folder of artifacts; any number of processes and threads may use it at once.

    Parameters
    ----------
    folder
        Made when the first artifact is stored.
    progress
        Called with a line of text when an entry is damaged or cannot be kept.
    """

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.folder = folder
        self._progress = progress

    def path(self, key: Key) -> Path:
        """Return the folder that an artifact has, or would have."""
        canonical = json.dumps(dict(key), sort_keys=True)
        return self.folder / hashlib.sha256(canonical.encode()).hexdigest()[:32]

    @classmethod
    def of_user(cls, progress: Progress) -> ArtifactCache:
        """Return the cache in the user's own cache folder."""
        try:
            return cls(user_cache() / "artifacts", progress)
        except RuntimeError as error:  # a user without a home, as in some containers
            progress(f"{error} Set XDG_CACHE_HOME to a folder for compiled networks.")
            return cls(Path(os.devnull) / "artifacts", progress)

    @contextlib.contextmanager
    def locked(self, key: Key) -> Iterator[None]:
        """Lock an entry, so that only one process or thread makes it while the others wait.

        Where there can be no lock (the folder cannot be written, the file system has no locks),
        this goes on without one.
        """
        with contextlib.ExitStack() as held:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                path = self.path(key).with_suffix(".lock")
                self._wait(held.enter_context(path.open("ab")))
            except OSError as error:
                self._progress(f"artifacts may not be kept: {error}")
            yield  # closing the file gives up the lock

    def load(self, key: Key) -> Path | None:
        """Return the folder of an artifact that is whole and made from `key`, or None.

        An entry that is damaged, or belongs to another user, is removed.
        """
        path = self.path(key)
        if not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where nothing may be read
            return None
        problem = _problem(path, key)
        if not problem:
            _mark_used(path)
            return path
        self._progress(f"artifact {path.name} is made anew: {problem}")
        self.discard(key)
        return None

    def store(self, key: Key, write: Callable[[Path], None]) -> None:
        """Keep an artifact: `write` puts its files into the folder that it is given.

        The entry appears whole or not at all. If the disk refuses it, this is reported to
        `progress`, and nothing is raised.
        """
        path = self.path(key)
        folder: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            prefix = f".new-{path.name}-"
            for left in self.folder.glob(f"{prefix}*"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(dir=self.folder, prefix=prefix))
            write(folder)
            files = {each.name: _facts(each) for each in sorted(folder.iterdir())}
            manifest = {"format": _FORMAT, "key": dict(key), "files": files}
            (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            for each in folder.iterdir():
                _sync(each)
            self.discard(key)
            folder.rename(path)
            _sync(self.folder)
            _mark_used(path)
            self._forget(_limit_bytes(self._progress))
        except Exception as error:  # noqa: BLE001 - on a full disk each library raises its own
            reason = one_line(error)
            self._progress(
                f"artifact {path.name} is not kept: {reason}; every start makes it anew until "
                f"{self.folder} can be written"
            )
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def discard(self, key: Key) -> None:
        """Remove an entry, if there is one."""
        shutil.rmtree(self.path(key), ignore_errors=True)

    def _forget(self, limit: int) -> None:
        """Remove the entries unused for longest until no more than `limit` bytes are left."""
        entries = []
        for manifest in self.folder.glob(f"[!.]*/{_MANIFEST}"):
            with contextlib.suppress(OSError):  # another process may be forgetting too
                files = sum(each.stat().st_size for each in manifest.parent.iterdir())
                entries.append((manifest.stat().st_mtime_ns, files, manifest.parent))
        total = sum(files for _, files, _ in entries)
        for _, files, path in sorted(entries):
            if total <= limit:
                return
            if not _is_used(path):
                gone = path.with_name(f".new-{path.name}-forgotten")
                with contextlib.suppress(OSError):
                    path.rename(gone)  # so that nobody finds half of it
                    shutil.rmtree(gone, ignore_errors=True)
                    total -= files

    def _wait(self, file: BinaryIO) -> None:
        """Wait until an exclusive lock on a file is had, and tell every few seconds."""
        told_at = -math.inf
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            if time.monotonic() - told_at >= _TELL_S:
                told_at = time.monotonic()
                self._progress("waiting for another process that makes the same artifact")
            time.sleep(_POLL_S)


def _mark_used(path: Path) -> None:
    """Note that an entry is used now, and keep others from forgetting it while this process lives.

    Where the file system has no locks or cannot be written, this does as much of it as is possible.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(path / _MANIFEST, os.O_RDONLY | os.O_CLOEXEC)
        before = _in_use.pop(path, None)
        if before is not None:
            os.close(before)
        _in_use[path] = descriptor
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.utime(descriptor)


def _is_used(path: Path) -> bool:
    """Whether a living process, possibly this one, has loaded or stored an entry."""
    if path in _in_use:
        return True
    try:
        with (path / _MANIFEST).open("rb") as manifest:
            fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _limit_bytes(progress: Progress) -> int:
    """Return the cache's limit in bytes; report a value that is no number, and use the default."""
    text = os.environ.get(LIMIT_VARIABLE, "")
    if text and not text.isdecimal():
        progress(
            f"{LIMIT_VARIABLE} is {text!r}; accepted: a whole number of megabytes; going on with "
            f"{DEFAULT_LIMIT_MB}"
        )
        text = ""
    return int(text or DEFAULT_LIMIT_MB) * 1_000_000


def _problem(path: Path, key: Key) -> str:
    """Say what is wrong with an entry; empty if it may be used."""
    try:
        # The hashes lie beside the files, so they reveal damage but not malice. Root's entries are
        # accepted, because a container image or a package may bring them.
        owner = path.stat().st_uid
        if owner not in (0, os.geteuid()):
            return f"it belongs to the user {owner}; accepted: one's own, or root's"
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != _FORMAT:
            return f"its format is {manifest['format']}, not {_FORMAT}"
        if manifest["key"] != dict(key):
            return "it was made from something else"
        for name, facts in manifest["files"].items():
            if Path(name).name != name:
                return f"it names a file outside of it, {name!r}"
            if _facts(path / name) != facts:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _facts(path: Path) -> dict[str, int | str]:
    return {"bytes": path.stat().st_size, "sha256": file_hash(path)}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
