"""Ψ beside Φ: what computes when, on a double that notes it; and progress that does not stop."""

import contextlib
import threading

import numpy as np
import pytest
import torch
from support.small_models import save_few_step

from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.runtime import backends, results
from magicfuse_ros.runtime.backends.eager import EagerBackend
from magicfuse_ros.runtime.concurrency import StreamNetwork, run_both
from magicfuse_ros.runtime.contract import EXTRAS
from magicfuse_ros.runtime.engine import EngineSettings, load_engine
from magicfuse_ros.runtime.heartbeat import heartbeat
from magicfuse_ros.runtime.networks import CompiledNetworks

CPU = torch.device("cpu")


def ignore(text):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_few_step(tmp_path_factory.mktemp("models"))


class Recorder(EagerBackend):
    """Runs like eager, can be started, and writes down what computed when."""

    made: list["Recorder"] = []  # noqa: RUF012 - emptied by the test

    def __init__(self, device, threads):
        super().__init__(device, threads)
        self.side_by_side = True
        self.log = []
        Recorder.made.append(self)

    def compile(self, part, progress):
        return Noted(part.name, super().compile(part, progress), self.log)

    def share(self, part, progress):
        return Noted(f"shared {part.name}", super().compile(part, progress), self.log)


class Noted:
    def __init__(self, name, network, log):
        self.name, self.network, self.log = name, network, log
        self.started = None

    def __call__(self, *inputs):
        self.log.append(self.name)
        return self.network(*inputs)

    def start(self, *inputs):
        assert self.started is None, "started twice"
        self.log.append(f"start {self.name}")
        self.started = self.network(*inputs)

    def finish(self):
        self.log.append(f"finish {self.name}")
        result, self.started = self.started, None
        return result


def noting(log, name, function):
    def noted(*arguments):
        log.append(name)
        return function(*arguments)

    return noted


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("parallel", ["on", "off"])
def test_the_schedule_of_a_frame(monkeypatch, folder, steps, parallel):
    monkeypatch.setattr(Recorder, "made", [])
    monkeypatch.setattr(backends, "BACKENDS", {"eager": Recorder})
    settings = EngineSettings(model=str(folder), device="cpu", steps=steps, parallel=parallel)
    engine = load_engine(settings, ignore)
    engine.warm_up(ignore)
    (recorder,) = Recorder.made
    del recorder.log[:]
    for name in ("classify", "to_picture"):
        noted = noting(recorder.log, name, getattr(results, name))
        monkeypatch.setattr(results, name, noted)
    engine.fuse(np.zeros((48, 64, 3), np.uint8), frozenset(EXTRAS))
    work = ["classify", "to_picture", "to_picture"]  # of what is there while D makes the next
    if parallel == "off":
        branches = ["psi", "phi"]
        decodings = [name for each in work for name in ("decoder", each)]
    else:
        branches = [
            "start shared psi",
            "start shared phi",
            "finish shared psi",
            "finish shared phi",
        ]
        decoder = "shared decoder"
        decodings = [n for each in work for n in (f"start {decoder}", each, f"finish {decoder}")]
    assert recorder.log == ["encoder", *[*branches, "fusion"] * steps, *decodings, "to_picture"]


def test_a_decoding_is_awaited_when_what_is_done_beside_it_fails(folder):
    networks = CompiledNetworks(
        MagicFuse.from_pretrained(folder), Recorder(CPU, 2), CPU, (48, 64), ignore, "on"
    )

    def fail():
        raise RuntimeError("no")

    with torch.inference_mode(), pytest.raises(RuntimeError, match="no"):
        networks.decode(networks._noise[0], fail)
    assert networks._decoder.started is None


def test_a_branch_that_cannot_start_leaves_the_other_finished(folder):
    model = MagicFuse.from_pretrained(folder)
    recorder = Recorder(CPU, 2)
    networks = CompiledNetworks(model, recorder, CPU, (48, 64), ignore, "on")
    psi, phi = networks._psi, networks._phi

    def refuse(*_):
        raise RuntimeError("no")

    phi.start = refuse
    latent = networks._noise[0]
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no"):
        networks.denoise(latent, latent, latent, 5)
    assert psi.started is None


def test_auto_is_side_by_side_where_the_backend_can_and_compiles_nothing_twice(folder):
    model = MagicFuse.from_pretrained(folder)
    for parallel, expected in (("auto", True), ("on", True), ("off", False)):
        told = []
        made = CompiledNetworks(model, Recorder(CPU, 2), CPU, (48, 64), told.append, parallel)
        assert made.side_by_side is expected
        prepared = [text for text in told if text.startswith("preparing ")]
        assert len(prepared) == 5


def test_a_backend_that_cannot_is_told_about_when_it_was_asked_for(folder):
    model = MagicFuse.from_pretrained(folder)
    for parallel, expected in (("on", 1), ("auto", 0)):
        told = []
        made = CompiledNetworks(model, EagerBackend(CPU, 2), CPU, (48, 64), told.append, parallel)
        assert not made.side_by_side
        assert len([text for text in told if "Ψ and Φ run in turn" in text]) == expected


class Started:
    """Writes down what it is asked; may fail."""

    def __init__(self, name, log, fails=""):
        self.name, self.log, self.fails = name, log, fails

    def start(self, *inputs):
        self.log.append(("start", self.name, inputs))
        if self.fails == "start":
            raise RuntimeError(f"{self.name} does not start")

    def finish(self):
        self.log.append(("finish", self.name))
        if self.fails == "finish":
            raise RuntimeError(f"{self.name} does not finish")
        return f"result of {self.name}"


def test_both_are_started_before_either_is_awaited():
    log = []
    results = run_both((Started("psi", log), Started("phi", log)), (1, 2), (3,))
    assert results == ("result of psi", "result of phi")
    assert log == [
        ("start", "psi", (1, 2)), ("start", "phi", (3,)), ("finish", "psi"), ("finish", "phi"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("psi", "phi", "finished"),
    [
        ("start", "", []),
        ("", "start", ["psi"]),
        ("finish", "", ["psi", "phi"]),
        ("", "finish", ["psi", "phi"]),
    ],
)
def test_whatever_was_started_is_awaited_when_the_other_fails(psi, phi, finished):
    log = []
    with pytest.raises(RuntimeError, match="does not"):
        run_both((Started("psi", log, psi), Started("phi", log, phi)), (), ())
    assert [entry[1] for entry in log if entry[0] == "finish"] == finished


class CudaDouble:
    """Notes what is asked of `torch.cuda`, in order; no GPU does anything."""

    def __init__(self):
        self.log, self.current, self.streams, self.events = [], "main", 0, 0

    def Stream(self, device):  # noqa: N802 - as torch.cuda has it
        assert device.type == "cuda"
        self.streams += 1
        return StreamDouble(self, f"side{self.streams}")

    def Event(self):  # noqa: N802 - as torch.cuda has it
        self.events += 1
        return EventDouble(self, f"event{self.events}")

    def current_stream(self, device):
        assert device.type == "cuda"
        return StreamDouble(self, self.current)

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream.name
        yield
        self.current = before


class StreamDouble:
    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def wait_event(self, event):
        self.cuda.log.append(f"{self.name} waits for {event.name}")


class EventDouble:
    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def record(self, stream):
        self.cuda.log.append(f"{self.name} on {stream.name}")


class ResultDouble:
    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def record_stream(self, stream):
        self.cuda.log.append(f"{self.name} is used on {stream.name}")


def on_stream(cuda, name):
    def network(*inputs):
        cuda.log.append(f"{name} computes on {cuda.current}")
        return (ResultDouble(cuda, f"result of {name}"),)

    return StreamNetwork(network, torch.device("cuda", 0), cuda)


def test_on_cuda_both_streams_wait_for_the_encoder_and_the_callers_stream_for_both():
    cuda = CudaDouble()
    pair = on_stream(cuda, "psi"), on_stream(cuda, "phi")
    for _ in range(2):  # the same events again at the next step
        cuda.log.append("encoder computes on main")
        run_both(pair, ("c", "z"), ("c", "z"))
        cuda.log.append("fusion computes on main")
        assert cuda.log == [
            "encoder computes on main",
            "event1 on main",
            "side1 waits for event1",
            "psi computes on side1",
            "event2 on side1",
            "event3 on main",
            "side2 waits for event3",
            "phi computes on side2",
            "event4 on side2",
            "main waits for event2",
            "result of psi is used on main",
            "main waits for event4",
            "result of phi is used on main",
            "fusion computes on main",
        ]
        cuda.log.clear()


def test_inputs_live_until_the_network_has_finished():
    pair = on_stream(CudaDouble(), "psi")
    pair.start("c", "z")
    assert pair._inputs == ("c", "z")
    pair.finish()
    assert pair._inputs == ()


# --- progress -----------------------------------------------------------------------------------


def test_the_last_word_is_said_again_while_nothing_else_is():
    told, often = [], threading.Event()

    def progress(text):
        told.append(text)
        if sum(text.startswith("compiling psi") for text in told) == 4:
            often.set()

    with heartbeat(progress, 0.01) as tell:
        tell("compiling psi")
        assert often.wait(60.0)
    said = len(told)
    first = told.index("compiling psi")  # on a busy machine it says that it works before that
    assert all(text.startswith("working (") for text in told[:first])
    assert all(text.startswith("compiling psi (") for text in told[first + 1 :])
    assert told[first + 1].endswith(" s so far)")
    assert not [thread for thread in threading.enumerate() if thread.name == "heartbeat"]
    assert len(told) == said


def test_a_wish_to_stop_is_raised_where_the_work_is_done():
    asked = threading.Event()

    def progress(text):
        asked.set()
        raise InterruptedError(text)

    with heartbeat(progress, 0.01) as tell:
        assert asked.wait(60.0)  # by a repetition: nothing is raised here
        with pytest.raises(InterruptedError, match="compiling phi"):
            tell("compiling phi")


def test_an_engine_at_work_on_another_size_tells_whoever_loaded_it(folder, monkeypatch):
    monkeypatch.setattr(backends, "BACKENDS", {"eager": EagerBackend})
    told = []
    engine = load_engine(EngineSettings(model=str(folder), device="cpu"), told.append)
    engine.warm_up(ignore)
    del told[:]
    engine.fuse(np.zeros((48, 32, 3), np.uint8))
    assert [text for text in told if text.startswith("preparing psi for ")]
    engine.close()
