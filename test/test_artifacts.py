"""The artifact cache: whole or absent, made once, and never in the way."""

import fcntl
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from magicfuse_ros.runtime import artifacts
from magicfuse_ros.runtime.artifacts import ArtifactCache

ROOT = Path(__file__).parents[1]
KEY = {"part": "psi", "weights": "abc", "openvino": "1"}


@pytest.fixture
def told():
    return []


@pytest.fixture
def cache(tmp_path, told):
    return ArtifactCache(tmp_path / "artifacts", told.append)


def write(folder):
    (folder / "model.xml").write_text("<net/>")
    (folder / "model.bin").write_bytes(bytes(range(256)) * 16)


def test_what_is_stored_is_found_under_its_key_alone(cache, told):
    assert cache.load(KEY) is None
    cache.store(KEY, write)
    folder = cache.load(KEY)
    assert (folder / "model.xml").read_text() == "<net/>"
    for name in KEY:
        assert cache.load({**KEY, name: "another"}) is None
    assert told == []
    assert [path.name for path in cache.folder.iterdir()] == [folder.name]


def flip(folder):
    content = bytearray((folder / "model.bin").read_bytes())
    content[100] ^= 1
    (folder / "model.bin").write_bytes(content)


def truncate(folder):
    os.truncate(folder / "model.bin", 1000)


def lose(folder):
    (folder / "model.bin").unlink()


def edit(**changes):
    def change(folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))

    return change


def garble(folder):
    (folder / "manifest.json").write_bytes(b"\x00{[")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (flip, "model.bin is not what was written"),
        (truncate, "model.bin is not what was written"),
        (lose, "FileNotFoundError"),
        (garble, "Error"),
        (lambda folder: (folder / "manifest.json").unlink(), "FileNotFoundError"),
        (edit(format=0), "its format is 0, not 1"),
        (edit(key={"part": "phi"}), "it was made from something else"),
        (edit(files={"../../secret": {}}), "it names a file outside of it"),
        (edit(files=[]), "AttributeError"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_damaged_or_foreign_is_removed_and_can_be_made_anew(cache, told, damage, complaint):
    cache.store(KEY, write)
    damage(cache.path(KEY))
    assert cache.load(KEY) is None
    (line,) = told
    assert line.startswith(f"artifact {cache.path(KEY).name} is made anew: ")
    assert complaint in line
    assert not cache.path(KEY).exists()
    cache.store(KEY, write)
    assert cache.load(KEY) == cache.path(KEY)


def test_what_another_user_has_put_there_is_not_loaded(cache, told, monkeypatch):
    cache.store(KEY, write)
    owner = os.geteuid()
    if owner == 0:
        owner = 12345
        os.chown(cache.path(KEY), owner, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)

    assert cache.load(KEY) is None
    assert f"it belongs to the user {owner}" in told[0]


def test_a_store_that_fails_half_way_leaves_nothing(cache, told):
    def disk_full(folder):
        (folder / "model.xml").write_text("<net/>")
        raise OSError(28, "No space left on device")

    cache.store(KEY, write)
    cache.store(KEY, disk_full)
    assert "is not kept: [Errno 28] No space left on device" in told[-1]
    assert cache.load(KEY) == cache.path(KEY)  # the one before is still whole
    assert {path.name for path in cache.folder.iterdir()} == {cache.path(KEY).name}


def test_a_folder_that_cannot_be_made_is_told_and_nothing_more(tmp_path, told):
    (tmp_path / "file").write_text("in the way")
    cache = ArtifactCache(tmp_path / "file" / "artifacts", told.append)
    with cache.locked(KEY):
        assert cache.load(KEY) is None
        cache.store(KEY, write)
    assert len(told) == 2
    assert told[0].startswith("artifacts may not be kept: ")
    assert "is not kept: " in told[1]


def test_a_file_system_without_locks_keeps_artifacts_all_the_same(cache, told, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with cache.locked(KEY):
        cache.store(KEY, write)
    assert cache.load(KEY) == cache.path(KEY)
    assert told == ["artifacts may not be kept: [Errno 37] No locks available"]


def test_what_fails_while_an_entry_is_held_is_not_taken_for_a_lock_that_failed(cache, told):
    with pytest.raises(OSError, match="of the work"), cache.locked(KEY):
        raise OSError("of the work")
    assert told == []
    with cache.locked(KEY):  # given up in between
        pass


def test_what_a_library_raises_on_a_full_disk_costs_the_artifact_only(cache, told):
    def serialise(folder):
        raise RuntimeError("Check 'file.good()' failed:\ncannot write")

    cache.store(KEY, serialise)
    (line,) = told
    assert "is not kept: Check 'file.good()' failed: cannot write; every start" in line
    assert line.endswith(f"until {cache.folder} can be written")
    assert list(cache.folder.iterdir()) == []


def test_the_users_cache_is_where_the_desktop_has_it(monkeypatch, tmp_path, told):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert ArtifactCache.of_user(told.append).folder == tmp_path / "magicfuse" / "artifacts"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    cache = ArtifactCache.of_user(told.append)
    assert cache.folder == tmp_path / "me" / ".cache" / "magicfuse" / "artifacts"
    assert told == []


def test_a_user_without_a_home_has_no_cache_and_is_told(monkeypatch, told):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    cache = ArtifactCache.of_user(told.append)
    with cache.locked(KEY):
        assert cache.load(KEY) is None
        cache.store(KEY, write)
    assert told[0] == (
        "Could not determine home directory. Set XDG_CACHE_HOME to a folder for compiled networks."
    )
    assert "is not kept: " in told[-1]


BUILDER = """
    import sys, time
    from pathlib import Path
    from magicfuse_ros.runtime.artifacts import ArtifactCache

    folder, builds = Path(sys.argv[1]), Path(sys.argv[2])
    cache, key = ArtifactCache(folder, print), {"part": "psi"}

    def write(into):
        (into / "model.bin").write_bytes(b"x" * 1000)

    print("ready", flush=True)
    sys.stdin.readline()
    with cache.locked(key):
        if cache.load(key) is None:
            with builds.open("a") as log:
                log.write("built\\n")
            time.sleep(0.5)
            cache.store(key, write)
    assert (cache.load(key) / "model.bin").stat().st_size == 1000
"""


def builder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(BUILDER), tmp_path / "a", tmp_path / "builds"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_of_several_processes_one_makes_the_artifact_and_the_others_wait(tmp_path):
    processes = [builder(tmp_path) for _ in range(3)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60) and process.returncode for process in processes] == [
        0
    ] * 3
    assert (tmp_path / "builds").read_text() == "built\n"


def test_a_builder_that_is_killed_leaves_the_entry_to_the_next(tmp_path):
    first, second = builder(tmp_path), builder(tmp_path)
    first.stdin.write("go\n")
    first.stdin.flush()
    builds = tmp_path / "builds"
    while not (builds.exists() and builds.read_text()):  # opened comes before written
        assert first.poll() is None
    first.kill()
    first.communicate()
    second.communicate("go\n", timeout=60)
    assert second.returncode == 0
    assert builds.read_text() == "built\n" * 2


def test_what_a_killed_builder_left_half_written_goes_with_the_next_store(cache):
    half, other = (cache.folder / f".new-{name}-x" for name in (cache.path(KEY).name, "another"))
    for left in (half, other):
        left.mkdir(parents=True)
        (left / "model.bin").write_bytes(b"x")
    cache.store(KEY, write)
    assert {path.name for path in cache.folder.iterdir()} == {cache.path(KEY).name, other.name}


def leave_all():
    """Use nothing any more, as a process that has ended."""
    while artifacts._in_use:
        os.close(artifacts._in_use.popitem()[1])


def large(folder):
    (folder / "model.bin").write_bytes(bytes(600_000))


def test_beyond_the_limit_what_was_unused_for_longest_goes(cache, told, monkeypatch):
    monkeypatch.setenv("MAGICFUSE_CACHE_MB", "2")
    keys = [{**KEY, "part": part} for part in ("psi", "phi", "fusion", "decoder", "encoder")]
    for age, key in enumerate(keys[:3]):
        cache.store(key, large)
        os.utime(cache.path(key) / "manifest.json", (1000 + age, 1000 + age))
    assert cache.load(keys[0])  # used again: now the second is the oldest
    leave_all()  # as in another process, after this one has ended
    cache.store(keys[3], large)
    assert [cache.path(key).is_dir() for key in keys] == [True, False, True, True, False]
    assert told == []
    monkeypatch.setenv("MAGICFUSE_CACHE_MB", "many")
    cache.store(keys[4], large)
    assert [cache.path(key).is_dir() for key in keys] == [True, False, True, True, True]
    assert told == [
        "MAGICFUSE_CACHE_MB is 'many'; accepted: a whole number of megabytes; going on with 10000"
    ]


def test_what_a_living_process_uses_is_never_forgotten(cache, monkeypatch):
    monkeypatch.setenv("MAGICFUSE_CACHE_MB", "1")
    keys = [{**KEY, "part": part} for part in ("psi", "phi", "fusion")]
    for key in keys:
        cache.store(key, large)  # in use by this process, which stored them
    assert all(cache.path(key).is_dir() for key in keys)
    leave_all()
    with (cache.path(keys[0]) / "manifest.json").open() as manifest:
        fcntl.flock(manifest, fcntl.LOCK_SH)  # another process's
        cache.store({**KEY, "part": "decoder"}, large)
        assert [cache.path(key).is_dir() for key in keys] == [True, False, False]
