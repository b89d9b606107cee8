"""Frames of another size: fused at once in networks that are ready, while their own are made."""

import threading

import numpy as np
import pytest
from support.small_models import save_few_step

from magicfuse_ros.runtime import backends
from magicfuse_ros.runtime.backends.eager import EagerBackend
from magicfuse_ros.runtime.engine import EXTRAS, EngineSettings, load_engine

ALL = frozenset(EXTRAS)
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_few_step(tmp_path_factory.mktemp("models"))


class Slow(EagerBackend):
    """Compiles in another thread than the test's only once it is let, and may fail then."""

    compiles = True
    let: threading.Event
    fails: bool

    def compile(self, part, progress):
        if part.name == "psi" and threading.current_thread() is not threading.main_thread():
            assert self.let.wait(PATIENCE_S)
            if self.fails:
                raise RuntimeError("no room\nfor it")
        return super().compile(part, progress)


@pytest.fixture
def live(folder, monkeypatch):
    """Load a warm engine on `Slow`; gives it, and the list of what it tells."""
    monkeypatch.setattr(Slow, "let", threading.Event(), raising=False)
    monkeypatch.setattr(Slow, "fails", False, raising=False)
    monkeypatch.setattr(backends, "BACKENDS", {"slow": Slow, "eager": EagerBackend})
    engines = []

    def live(stop=threading.Event()):  # noqa: B008 - the others never set it
        told = []

        def progress(text):
            if stop.is_set():
                raise InterruptedError
            told.append(text)

        engines.append(load_engine(EngineSettings(model=str(folder), device="cpu"), progress))
        engines[-1].warm_up(told.append)
        del told[:]
        return engines[-1], told

    yield live
    Slow.let.set()
    for made in engines:
        made.close()


def picture(height, width):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 3, columns * 3, rows + columns], -1).astype(np.uint8)


def same(first, second):
    arrays = ("magimg", "mask", "confidence", "infrared", "enhanced")
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in arrays)


def sizes(engine):
    return sorted(engine._networks._ready)


def fuse_until(engine, frame, condition):
    """Fuse as a camera's frames come; returns the last result."""
    for _ in range(10_000):
        result = engine.fuse(frame, ALL, wait=False)
        if condition():
            return result
    raise AssertionError("it never came to that")


def test_frames_are_fused_while_their_size_is_made_and_then_in_it(live):
    engine, told = live()
    wide, tall = picture(60, 128), picture(64, 48)
    before = [engine.fuse(wide, ALL, wait=False) for _ in range(3)]
    assert engine.under_way == "64x32"
    assert not engine.preparing  # so that a frame that hangs now is noticed
    assert before[0].magimg.shape == wide.shape
    assert before[0].mask.shape == wide.shape[:2]
    assert same(before[0], before[2])
    # Another camera's frame does not begin a second size beside the first.
    assert engine.fuse(tall, ALL, wait=False).magimg.shape == tall.shape
    assert sizes(engine) == [(48, 64)]

    Slow.let.set()
    after = fuse_until(engine, wide, lambda: (32, 64) in sizes(engine))
    assert sizes(engine) == [(32, 64)]  # what only stood in is gone
    assert engine.under_way == ""
    reference, _ = live()
    assert same(after, reference.fuse(wide, ALL))
    # Close, too, to what the other size gave: the same picture in more padding.
    assert np.abs(before[0].magimg.astype(int) - after.magimg).mean() < 25
    fuse_until(engine, tall, lambda: (64, 48) in sizes(engine))
    assert sizes(engine) == [(64, 48)]
    assert told[0] == (
        "preparing networks for 64x32; until they are ready frames go through others"
    )
    assert told.count("networks for 64x32 are ready") == 1


def test_waiting_takes_what_is_under_way(live):
    engine, told = live()
    wide = picture(60, 128)
    engine.fuse(wide, wait=False)
    threading.Timer(0.05, Slow.let.set).start()
    waited = engine.fuse(wide, ALL)
    assert same(waited, engine.fuse(wide, ALL, wait=False))
    assert told.count("preparing psi for 64x32") == 1


def test_a_failure_behind_the_frames_is_told_once_and_they_go_on(live, monkeypatch):
    engine, told = live()
    monkeypatch.setattr(Slow, "fails", True)
    wide = picture(60, 128)
    first = engine.fuse(wide, ALL, wait=False)
    Slow.let.set()
    fuse_until(engine, wide, lambda: engine._networks._refused)
    assert same(first, engine.fuse(wide, ALL, wait=False))
    failures = [text for text in told if "cannot be made" in text]
    assert failures == [
        "networks for 64x32 cannot be made, frames go on through others: no room for it"
    ]
    assert told.count("preparing psi for 64x32") == 1


@pytest.mark.parametrize("end", ["close", "fall_back"])
def test_what_is_under_way_ends_with_the_engine(live, end):
    engine, told = live()
    engine.fuse(picture(60, 128), wait=False)
    if end == "fall_back":
        assert engine.fall_back(told.append) == "eager on cpu"
        assert engine.fuse(picture(60, 128), wait=False).magimg.shape == (60, 128, 3)
    threading.Timer(0.05, Slow.let.set).start()
    engine.close()
    assert not [each for each in threading.enumerate() if each.name.startswith("prepare_networks")]
    assert "networks for 64x32 are ready" not in told
    assert not [text for text in told if "cannot be made" in text]


def test_whoever_stops_a_node_ends_what_is_under_way(live):
    stop = threading.Event()
    engine, told = live(stop)
    engine.fuse(picture(60, 128), wait=False)
    stop.set()
    Slow.let.set()
    # As from a load that is stopped: the frame that finds out raises it.
    with pytest.raises(InterruptedError):
        fuse_until(engine, picture(60, 128), lambda: False)
    engine.close()
    assert "networks for 64x32 are ready" not in told
