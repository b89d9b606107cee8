"""The node's parts that need no other process."""

import math
import subprocess
import sys
import threading
import time
from unittest import mock

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from hypothesis import given
from hypothesis import strategies as st
from rclpy.qos import ReliabilityPolicy
from sensor_msgs.msg import Image

from magicfuse_ros.ros import dds, ledger
from magicfuse_ros.ros.diagnostics import Health, judge, key_values, resident_memory_mb
from magicfuse_ros.ros.ledger import Account, Ledger, Throttle
from magicfuse_ros.ros.node.id_map import IdMap, remap
from magicfuse_ros.ros.node.mailbox import Mailbox
from magicfuse_ros.ros.node.parameters import PARAMETERS, SPECS, Settings
from magicfuse_ros.ros.node.pipeline import Pipeline
from magicfuse_ros.ros.node.worker import EngineWorker, Frame
from magicfuse_ros.ros.parameter_table import ParameterError, ParameterSpec
from magicfuse_ros.ros.qos import choose_reliability, large_message_warning
from magicfuse_ros.ros.statistics import Recent, Summary, Timings, age_ms
from magicfuse_ros.runtime.contract import EngineError, EngineSettings, FuseResult

DEFAULTS = {spec.name: spec.default for spec in PARAMETERS}
NAMES = ["sky", "car", "person", "road"]
RELIABLE, BEST_EFFORT = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT


def test_the_node_starts_without_pytorch():
    code = "import sys, magicfuse_ros.ros.node.fuse_lifecycle; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- parameters -------------------------------------------------------------------------------


def test_defaults_mean_the_models_own_values():
    settings = Settings.from_values(DEFAULTS)
    assert settings.engine == EngineSettings(temporal=0.0)
    assert settings.id_map == IdMap()


def test_every_parameter_is_named_once_and_described():
    assert len(SPECS) == len(PARAMETERS)
    for spec in PARAMETERS:
        assert spec.description.endswith(".")
        assert spec.descriptor().name == spec.name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", -1),
        ("steps", 1001),
        ("steps", 2.0),
        ("steps", True),
        ("tau", math.nan),
        ("tau", "0.4"),
        ("autostart", 1),
        ("device", 0),
        ("input_transport", "h264"),
        ("semantic.min_confidence", 1.0001),
    ],
)
def test_a_bad_value_is_named_with_what_is_accepted(name, value):
    with pytest.raises(ParameterError) as caught:
        Settings.from_values(DEFAULTS | {name: value})
    assert f"{name} is {value!r}; accepted: {SPECS[name].accepted}" == str(caught.value)


def test_a_decimal_number_may_be_given_as_an_integer():
    assert Settings.from_values(DEFAULTS | {"tau": 1}).engine.tau == 1.0


def test_half_a_resolution_is_refused():
    with pytest.raises(ParameterError, match="both 0"):
        Settings.from_values(DEFAULTS | {"model_width": 320})


def test_a_table_row_with_a_bad_default_cannot_be_written():
    with pytest.raises(ParameterError, match="x is 3"):
        ParameterSpec(name="x", default=3, description="", live=True, low=0, high=2)


def test_what_needs_another_engine_is_named():
    loaded = Settings.from_values(DEFAULTS)
    now = Settings.from_values(DEFAULTS | {"model": "paper", "steps": 3, "threads": 1})
    assert now.needing_reconfigure(loaded) == ["model", "threads"]


# --- semantic.id_map --------------------------------------------------------------------------


def test_an_id_map_covers_named_classes_the_rest_and_unknown():
    table = IdMap.parse(" person:6, car : 7,").table(NAMES)
    assert list(table[[0, 1, 2, 3, 255]]) == [255, 7, 6, 255, 255]
    table = IdMap.parse("person:6, *:0").table(NAMES)
    assert list(table[[0, 1, 2, 3, 255]]) == [0, 0, 6, 0, 0]
    table = IdMap.parse("unknown:9, *:0").table(NAMES)
    assert list(table[[0, 255]]) == [0, 9]
    assert list(IdMap.parse("").table(NAMES)) == list(range(256))


@pytest.mark.parametrize("text", ["person", "person:", ":3", "person:256", "person:-1", "a:1, a:2"])
def test_an_unreadable_id_map_is_refused(text):
    with pytest.raises(ValueError, match="accepted"):
        IdMap.parse(text)


@given(
    st.dictionaries(st.sampled_from(NAMES), st.integers(0, 255)),
    st.integers(0, 255),
    st.floats(0.0, 1.0),
)
def test_remapping_equals_its_definition(ids, rest, min_confidence):
    id_map = IdMap((*ids.items(), ("*", rest)))
    rng = np.random.default_rng(rest)
    mask = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (4, 5))
    confidence = rng.integers(0, 256, (4, 5), np.uint8)
    original = mask.copy()
    published = remap(mask, confidence, id_map.table(NAMES), min_confidence)
    assert np.array_equal(mask, original)
    for old, sure, new in zip(mask.flat, confidence.flat, published.flat, strict=True):
        known = old != 255 and sure >= min_confidence * 255.0
        assert new == (ids.get(NAMES[old], rest) if known else rest)


# --- mailbox and account ----------------------------------------------------------------------


def test_the_mailbox_keeps_the_newest():
    mailbox = Mailbox()
    assert mailbox.put("old") is None
    assert mailbox.put("new") == "old"
    assert mailbox.take() == "new"
    mailbox.put("last")
    assert mailbox.clear() == "last"
    assert mailbox.clear() is None


def test_a_closed_mailbox_frees_who_waits():
    mailbox, taken = Mailbox(), []
    waiting = threading.Thread(target=lambda: taken.append(mailbox.take()))
    waiting.start()
    mailbox.close()
    waiting.join(10.0)
    assert taken == [None]


def test_no_item_is_lost_between_threads():
    mailbox, account, taken = Mailbox(), Ledger(), []

    def work():
        while (item := mailbox.take()) is not None:
            taken.append(item)
            account.published()

    worker = threading.Thread(target=work)
    worker.start()
    for item in range(1, 5001):
        account.received()
        if mailbox.put(item) is not None:
            account.drop(ledger.REPLACED)
    while account.account().pending:
        time.sleep(0.001)
    mailbox.close()
    worker.join(10.0)
    counts = account.account()
    assert taken == sorted(taken)
    assert taken[-1] == 5000
    assert (counts.frames_in, counts.frames_out) == (5000, len(taken))
    assert counts.dropped == {"replaced": 5000 - len(taken)}


def test_an_event_is_logged_once_and_then_throttled():
    throttle = Throttle(period_s=0.2)
    assert [throttle.allows("a"), throttle.allows("a"), throttle.allows("b")] == [True, False, True]
    time.sleep(0.25)
    assert throttle.allows("a")


# --- statistics and diagnostics ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("stamp_ms", "received_ms", "published_ms", "age"),
    [
        (1000, 1010, 1030, 30.0),
        (1000, 1000, 1000, 0.0),  # simulated time stands still
        (0, 1000, 1010, None),  # no stamp
        (1050, 1010, 1030, None),  # from the future
        (1000, 1010, 990, None),  # the clock jumped back on the way
        (1000, 1010 + 10**8, 1030 + 10**8, None),  # a recording without simulated time
    ],
)
def test_the_age_at_publish_is_sane_or_absent(stamp_ms, received_ms, published_ms, age):
    assert age_ms(stamp_ms * 10**6, received_ms * 10**6, published_ms * 10**6) == age


def test_timings_summarise_each_stage():
    timings = Timings()
    for value in range(1, 101):
        timings.add({"fuse": float(value), "decode": 1.0}, None)
    assert timings.summaries() == {
        "fuse": Summary(50.5, pytest.approx(95.05), 100.0),
        "decode": Summary(1.0, 1.0, 1.0),
    }
    timings.clear()
    assert timings.summaries() == {}


def test_recent_drops_and_rates():
    recent = Recent()
    recent.restart(Account(10, 5, {"replaced": 5}))
    assert recent.rates() == (0.0, 0.0)
    time.sleep(0.05)
    recent.add(Account(20, 10, {"replaced": 8, "short_data": 2}))
    frames_in, frames_out = recent.rates()
    assert frames_in == pytest.approx(2 * frames_out)
    assert 0.0 < frames_in <= 200.0
    assert recent.dropped() == {"replaced": 3, "short_data": 2}


@pytest.mark.parametrize(
    ("changes", "level", "word"),
    [
        ({}, DiagnosticStatus.OK, "active"),
        ({"enabled": False, "silent_s": 9.0}, DiagnosticStatus.OK, "paused"),
        ({"dropped": {"replaced": 9}}, DiagnosticStatus.OK, "active"),
        ({"dropped": {"short_data": 1}}, DiagnosticStatus.WARN, "short_data"),
        ({"warnings": ("untrained",)}, DiagnosticStatus.WARN, "untrained"),
        ({"silent_s": 9.0}, DiagnosticStatus.STALE, "no frames on /image for 9 s (1 publishers)"),
        ({"dropped": {"engine_error": 2}}, DiagnosticStatus.ERROR, "engine_error"),
        ({"busy_s": 9.0}, DiagnosticStatus.ERROR, "busy with one frame for 9 s"),
        ({"state": "unconfigured", "error": "cannot"}, DiagnosticStatus.ERROR, "cannot"),
        ({"state": "inactive", "silent_s": 9.0}, DiagnosticStatus.OK, "inactive"),
    ],
)
def test_levels(changes, level, word):
    health = {
        "state": "active",
        "enabled": True,
        "input_topic": "/image",
        "publishers": 1,
    } | changes
    found, message = judge(Health(**health))
    assert found == level
    assert word in message


def test_the_keys_add_up():
    account = Account(10, 6, {"replaced": 2, "short_data": 1})
    values = key_values(
        {"state": "active", "enabled": True}, account, (5.0, 3.0), {"age": Summary(1.0, 2.0, 3.0)}
    )
    assert values["enabled"] == "true"
    assert values["frames_pending"] == "1"
    assert values["dropped_total"] == "3"
    assert values["dropped.short_data"] == "1"
    assert (values["age_ms.p50"], values["age_ms.p95"], values["age_ms.max"]) == (
        "1.00",
        "2.00",
        "3.00",
    )


def test_memory_is_that_of_this_process():
    assert 10.0 < resident_memory_mb() < 10_000.0


# --- quality of service -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "offered", "chosen"),
    [
        ("auto", [], RELIABLE),
        ("auto", [RELIABLE], RELIABLE),
        ("auto", [RELIABLE, BEST_EFFORT], BEST_EFFORT),
        ("reliable", [BEST_EFFORT], RELIABLE),
        ("best_effort", [RELIABLE], BEST_EFFORT),
    ],
)
def test_the_input_matches_the_camera(setting, offered, chosen):
    assert choose_reliability(setting, offered) == chosen


def test_only_large_best_effort_images_without_a_profile_are_warned_of():
    vga, fast = 921600, "rmw_fastrtps_cpp"
    assert "config/fastdds.xml" in large_message_warning(vga, BEST_EFFORT, fast, {})
    assert not large_message_warning(vga, RELIABLE, fast, {})
    assert not large_message_warning(1000, BEST_EFFORT, fast, {})
    assert not large_message_warning(vga, BEST_EFFORT, "rmw_cyclonedds_cpp", {})
    profile = {"FASTDDS_DEFAULT_PROFILES_FILE": "x.xml"}
    assert not large_message_warning(vga, BEST_EFFORT, fast, profile)


def test_a_load_is_never_silent_and_never_says_a_thing_twice_at_once():
    told = []
    worker = EngineWorker(load=None, process=None, log=told.append)
    worker.progress("reading the weights")
    worker.repeat_progress("(1 s so far)", 3600.0)
    assert told == ["reading the weights"]
    worker.repeat_progress("(6 s so far)", 0.0)
    assert told[1:] == ["reading the weights (6 s so far)"]


# --- the engine and what is asked of it ---------------------------------------------------------


class Doubles:
    """A pipeline around an engine of the test's own, with nothing else that is real."""

    def __init__(self, engine):
        self.settings = Settings.from_values(DEFAULTS)
        self.log, self.account = mock.Mock(), Ledger()
        self.pipeline = Pipeline(
            settings=self.settings,
            publishers=mock.Mock(**{"wanted_extras.return_value": frozenset()}),
            account=self.account,
            timings=Timings(),
            camera_info=lambda: None,
            clock=mock.Mock(**{"now.return_value.nanoseconds": 0}),
            log=self.log,
        )
        self.engine = engine
        self.image = Image(height=1, width=1, step=3, encoding="rgb8", data=bytes(3))
        self.pipeline.loaded(engine, self.settings)
        self.pipeline.active = True

    def send(self, **parameters):
        self.pipeline.settings = Settings.from_values(DEFAULTS | parameters)
        self.account.received()
        self.pipeline.process(
            self.engine, Frame(self.image, time.monotonic(), 0, True), lambda _: None
        )


def small_engine(**attributes):
    result = FuseResult(*(np.zeros((1, 1, 3), np.uint8) for _ in range(3)), None, None, {})
    engine = mock.Mock(**{"fuse.return_value": result, "fall_back.return_value": "spare"})
    engine.labels.names.return_value = NAMES
    engine.configure_mock(**attributes)
    return engine


def test_parameters_that_no_backend_can_fuse_with_do_not_cost_the_backend():
    engine = small_engine()
    doubles = Doubles(engine)
    doubles.send()
    good = engine.fuse.return_value
    engine.fuse.side_effect = EngineError("values that are not finite")
    for _ in range(5):
        doubles.send(steps=1000)
    engine.fall_back.assert_not_called()
    assert doubles.account.account().dropped["engine_error"] == 5
    (told,) = [call for call in doubles.log.error.call_args_list if "since" in str(call)]
    assert "fused nothing since steps became 1000" in str(told)

    engine.fuse.side_effect, engine.fuse.return_value = None, good
    doubles.send()
    assert engine.update.call_args_list[-1].kwargs["steps"] == 0
    assert doubles.account.account().frames_out == 2
    # With parameters that did work, it is the backend's fault.
    engine.fuse.side_effect = EngineError("lost")
    for _ in range(2):
        doubles.send()
    engine.fall_back.assert_called_once()


@pytest.mark.parametrize("error", [EngineError("steps is 900; accepted: 1 to 400"), KeyError("x")])
def test_a_value_that_the_engine_refuses_is_told_until_it_is_changed(error):
    engine = small_engine(**{"update.side_effect": error})
    doubles = Doubles(engine)
    doubles.send(steps=900)
    assert "keeps its former sampling parameters" in doubles.pipeline.refused
    assert doubles.account.account().frames_out == 1
    engine.update.side_effect = None
    doubles.send(steps=300)
    assert doubles.pipeline.refused == ""


def test_full_shared_memory_is_told_where_publishing_fails(monkeypatch):
    monkeypatch.setattr(dds, "shared_memory_warning", lambda: "shared memory is full")
    doubles = Doubles(small_engine())
    doubles.pipeline._publishers.publish.side_effect = RuntimeError("cannot allocate")
    doubles.send()
    assert doubles.account.account().dropped["publish_error"] == 1
    (told,) = doubles.log.warning.call_args.args
    assert "RuntimeError: cannot allocate; shared memory is full" in told


def test_a_frame_that_nobody_will_see_is_ended_soon_and_the_next_gets_what_is_in_force():
    engine = small_engine()
    doubles = Doubles(engine)
    doubles.send(steps=900, tau=0.5)
    doubles.pipeline.hurry(engine)
    assert engine.update.call_args.kwargs == {"steps": 1, "tau": 0.5, "seed": None, "temporal": 0.0}
    doubles.send(steps=900, tau=0.5)
    assert engine.update.call_args.kwargs["steps"] == 900


def test_a_camera_of_12_bits_is_told_what_to_set_and_is_not_dark_then():
    engine = small_engine()
    doubles = Doubles(engine)
    doubles.image = Image(height=1, width=2, step=4, encoding="mono16", data=b"\0\0\xff\x0f")
    for _ in range(40):
        doubles.send()
    assert engine.fuse.call_args.args[0].max() == 16
    assert "set input_bits to 12" in doubles.pipeline.advice
    doubles.log.warning.assert_called_once()  # not with every frame

    doubles.send(input_bits=12)
    assert engine.fuse.call_args.args[0][0, :, 0].tolist() == [0, 255]
    assert doubles.pipeline.advice == ""


@pytest.mark.parametrize("bits", [1, 7])
def test_bits_that_no_camera_has_are_refused(bits):
    with pytest.raises(ParameterError, match=f"input_bits is {bits}; accepted: 0, or 8 to 16"):
        Settings.from_values(DEFAULTS | {"input_bits": bits})


def test_a_frame_that_ends_as_the_watchdog_looks_leaves_nobody_busy():
    """The executor's thread looks at a frame while the worker's ends it."""
    looking = threading.Event()

    class Engine:
        @property
        def preparing(self):
            looking.set()
            return True

        def close(self):
            pass

    worker = EngineWorker(load=lambda _: Engine(), process=lambda *_: looking.wait(10.0), log=print)
    worker.start()
    assert worker.wait_loaded(10.0)
    for _ in range(200):
        looking.clear()
        worker.mailbox.put(Frame(None, 0.0, 0, True))
        while not worker.busy_s:
            time.sleep(0)
        assert not worker.give_up(0.0)
        assert worker.wait_idle(10.0)
        assert worker.busy_s == 0.0
    worker.stop(10.0)


def test_a_change_of_what_is_asked_starts_the_watchdogs_clock_anew():
    go = threading.Event()
    engine = mock.Mock(preparing=False)
    worker = EngineWorker(load=lambda _: engine, process=lambda *_: go.wait(10.0), log=print)
    worker.start()
    worker.mailbox.put(Frame(None, 0.0, 0, True))
    while worker.busy_s < 0.2:
        time.sleep(0.01)
    worker.begin_anew()
    assert worker.busy_s < 0.2
    assert not worker.give_up(0.2)
    assert worker.give_up(0.0)
    go.set()
    assert worker.stop(10.0)
    engine.close.assert_called_once()


@pytest.mark.parametrize(("given", "meant"), [(True, "on"), (False, "off"), ("auto", "auto")])
def test_on_and_off_are_words_where_they_are_choices(given, meant):
    assert SPECS["parallel"].understood(given) == meant
    assert SPECS["autostart"].understood(given) == given
    assert SPECS["input_transport"].understood(given) == given


def test_a_class_that_the_label_set_has_not_is_told_with_its_parameter():
    settings = Settings.from_values(DEFAULTS | {"semantic.id_map": "unicorn:6"})
    with pytest.raises(ParameterError, match=r"semantic\.id_map: class 'unicorn' is not in"):
        settings.id_map.table(NAMES)
