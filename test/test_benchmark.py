"""`magicfuse benchmark`: its figures are there, add up and are worked out right; never a time."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import cv2
import numpy as np
import pytest
import torch
from support.small_models import save_few_step

from magicfuse_ros.cli import main
from magicfuse_ros.commands.benchmark_node import drift, figures, ros_percent
from magicfuse_ros.commands.node_session import MAGIMG, Session
from magicfuse_ros.evaluation.benchmark import engine_runs, measurements
from magicfuse_ros.evaluation.benchmark.claims import Claim, claims
from magicfuse_ros.evaluation.benchmark.engine_runs import (
    HD,
    RESOLUTIONS,
    STEPS,
    VGA,
    Benchmark,
    Case,
    plan,
    run_engine,
)
from magicfuse_ros.evaluation.benchmark.machine import BenchmarkError, Usage, describe, usage
from magicfuse_ros.evaluation.benchmark.page import page
from magicfuse_ros.evaluation.segformer import segformer_b0
from magicfuse_ros.runtime.engine import FuseEngine
from magicfuse_ros.runtime.stopwatch import STAGES

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 420  # a machine that is busy with something else imports PyTorch in a minute
MS = 1_000_000


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    return save_few_step(tmp_path_factory.mktemp("model"))


def start(*arguments, mark="MAGICFUSE_TEST_MARK=none"):
    name, _, value = mark.partition("=")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", name: value}
    environment.pop("ROS_DOMAIN_ID", None)
    search = filter(None, [str(ROOT), environment.get("PYTHONPATH")])
    environment["PYTHONPATH"] = os.pathsep.join(search)
    return subprocess.Popen(
        [sys.executable, "-m", "magicfuse_ros", "benchmark", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def marked(mark):
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue  # it ended meanwhile
    return found


# --- the whole of it, small ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory, small_model):
    folder = tmp_path_factory.mktemp("quick")
    output, markdown = folder / "results.json", folder / "page.md"
    process = start("--quick", "--model", small_model, "--output", output, "--markdown", markdown)
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    print(out)
    assert process.returncode == 0, err
    return json.loads(output.read_text(encoding="utf-8")), out, markdown


def test_a_quick_run_has_every_part(quick):
    results, out, _ = quick
    assert results["errors"] == []
    survey = results["engine"]["survey"]
    assert (survey["steps"], survey["resolution"], survey["classes"]) == (2, [64, 48], 12)
    assert "eager" in survey["backends"]
    rows = [(row["backend"], row["steps"], row["parallel"]) for row in results["engine"]["engine"]]
    assert rows == [(survey["backends"][0], 2, "auto"), ("eager", 25, "off")]
    assert set(results["engine"]["parity"]) == {*survey["backends"]} - {"eager"}
    for row in results["engine"]["parity"].values():
        assert 0.0 <= row["magimg_mean"] <= measurements.MAGIMG_TOLERANCE
        assert measurements.MASK_TOLERANCE <= row["mask_agreement"] <= 1.0
    assert "A QUICK RUN" in out
    told = json.loads(out.splitlines()[-1])
    assert told == {claim["name"]: claim["value"] for claim in results["claims"]}


def test_a_quick_runs_engine_figures_make_sense(quick):
    engine = quick[0]["engine"]
    for row in [*engine["engine"], *engine["peers"]]:
        times = row["ms"]
        assert 0.0 < times["p50"] <= times["p95"]
        assert row["frames"] == 3
        assert row["fps"] > 0.0
        assert row["threads"] >= 1
        assert 0.0 < row["memory_mb"]["steady"] <= row["memory_mb"]["peak"]
    for row in engine["engine"]:
        assert tuple(row["stage_ms"]) == STAGES
        assert min(row["stage_ms"].values()) >= 0.0
        assert row["start_s"] > 0.0


def test_a_quick_runs_frames_add_up(quick):
    (row,) = quick[0]["node"]
    assert (row["camera"], row["rate_hz"]) == ([640, 480], 30.0)
    assert row["accounted"]
    assert row["sent"] == row["out"] + sum(row["dropped"].values()) + row["lost"]
    assert 0 < row["received"] <= row["out"] <= row["sent"]
    age = row["age_ms"]
    assert 0.0 < age["p50"] <= age["p95"] <= age["max"] < 60_000.0
    assert 0.0 < row["ros_percent"] < 100.0
    assert row["cpu_percent"] > 0.0
    assert 0.0 < row["memory_mb"]["steady"] <= row["memory_mb"]["peak"]
    assert row["backend"].startswith(quick[0]["engine"]["engine"][0]["backend"])


def test_a_quick_runs_claims_are_its_own_figures(quick):
    results = quick[0]
    measured = {claim["name"]: claim["value"] for claim in results["claims"]}
    assert measured.pop("memory's slope over the soak") is None
    assert measured.pop("cold start to first fused frame, nothing compiled yet") is None
    assert measured.pop("Ψ and Φ side by side to in turn") is None
    assert all(math.isfinite(value) and value > 0.0 for value in measured.values())
    default, reference = results["engine"]["engine"]
    speed_up = measured["faster than 25 steps, eager, Ψ then Φ"]
    assert speed_up == pytest.approx(reference["ms"]["p50"] / default["ms"]["p50"])


def test_a_quick_runs_page_has_tables_a_picture_and_no_paths(quick, small_model):
    results, _, markdown = quick
    text = markdown.read_text(encoding="utf-8")
    for title in ("What this run shows", "Engine", "Node"):
        assert f"### {title}\n" in text
    assert "| SegFormer-B0, " in text
    assert "![time and stages of a frame](images/page.png)" in text
    picture = cv2.imread(str(markdown.parent / "images" / "page.png"))
    assert picture.std() > 10.0
    assert (markdown.parent / "images" / "page.png").stat().st_size < 150_000
    told = text + json.dumps(results)
    for path in (markdown.parent, small_model, ROOT, Path.home(), sys.prefix):
        assert str(path) not in told


def test_a_signal_ends_it_and_its_processes(small_model):
    arguments = ("--quick", "--level", "engine", "--model", small_model)
    marks = {
        number: f"MAGICFUSE_TEST_MARK={uuid.uuid4()}" for number in (signal.SIGINT, signal.SIGTERM)
    }
    processes = {number: start(*arguments, mark=mark) for number, mark in marks.items()}
    try:
        for number, process in processes.items():
            while len(marked(marks[number])) < 2:  # the command itself and a measurement
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(number)
        for number, process in processes.items():
            out, _ = process.communicate(timeout=TIMEOUT_S)
            assert (process.returncode, out) == (128 + number, "")
            assert marked(marks[number]) == []
    finally:
        for process in processes.values():
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--threads", "-1"], "--threads is -1; accepted"),
        (["--soak", "1", "--level", "engine"], "does not go with --level engine"),
        (["--soak", "nan"], "a number of minutes above 0"),
        (["--output", "{}/none/x.json"], "its folder is missing"),
    ],
)
def test_a_wrong_argument_is_one_line(tmp_path, capsys, arguments, text):
    assert main(["benchmark", *(word.format(tmp_path) for word in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("magicfuse benchmark: ")
    assert text in line


# --- one measurement -----------------------------------------------------------------------------


def benchmark_in(folder, **changes):
    fields = {
        "settings": {"model": "fake", "device": "cpu", "threads": 0},
        "quick": False,
        "folder": folder,
        "stop": threading.Event(),
        "show": lambda _text: None,
        "errors": [],
    }
    return Benchmark(**fields | changes)


def test_a_measurement_that_fails_says_why(tmp_path):
    run = benchmark_in(tmp_path)
    assert run.measure("it", "parity", settings={}, frames=f"{tmp_path}/none.npy") == {}
    (error,) = run.errors
    assert error.startswith("it: it ended with status 1: ")
    assert "none.npy" in error


def test_a_measurement_that_dies_says_its_last_words(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho out of luck >&2\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    run = benchmark_in(tmp_path)
    assert run.measure("it", "parity") == {}
    assert run.errors == ["it: it ended with status -9: out of luck"]


def test_who_stops_waiting_leaves_no_process(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))

    class OnceStarted(threading.Event):
        def wait(self, timeout=None):
            del timeout
            return (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text())

    with pytest.raises(KeyboardInterrupt):
        benchmark_in(tmp_path, stop=OnceStarted()).measure("it", "parity")
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def parity_of(folder, monkeypatch, grey, same):
    """Compare two engines whose MagImgs are `grey` apart and whose masks agree on `same` pixels."""
    made = []

    def ready(_settings):
        other = bool(made)
        mask = np.arange(64).reshape(8, 8) < (same if other else 64)
        outcome = SimpleNamespace(magimg=np.full((8, 8, 3), grey * other, np.uint8), mask=mask)
        made.append(SimpleNamespace(fuse=lambda _picture: outcome, close=lambda: None))
        return made[-1]

    monkeypatch.setattr(measurements, "_ready", ready)
    np.save(folder / "frames.npy", np.zeros((2, 8, 8, 3), np.uint8))
    return measurements.parity(settings={}, frames=str(folder / "frames.npy"))


def test_a_backend_that_gives_the_same_has_parity(tmp_path, monkeypatch):
    assert parity_of(tmp_path, monkeypatch, 0, 64) == {"magimg_mean": 0.0, "mask_agreement": 1.0}
    found = parity_of(tmp_path, monkeypatch, 1, 63)
    assert found == {"magimg_mean": 1.0, "mask_agreement": 63 / 64}


@pytest.mark.parametrize(("grey", "same"), [(2, 64), (0, 60)])
def test_a_backend_that_gives_something_else_has_none(tmp_path, monkeypatch, grey, same):
    with pytest.raises(RuntimeError, match="too far from eager on the CPU, not timed"):
        parity_of(tmp_path, monkeypatch, grey, same)


class FakeBenchmark(Benchmark):
    """Answers as a machine with two backends, one of which computes something else."""

    timed: ClassVar = []

    def measure(self, what, job, *, cache="cache", **arguments):
        settings = arguments["settings"]
        backend = settings["backend"]
        if job == "parity":
            if backend == "wrong":
                self.errors.append(f"{what}: too far")
                return {}
            return {"magimg_mean": 0.1, "mask_agreement": 1.0}
        self.timed.append((job, backend, cache))
        if backend == "right" and settings.get("steps") == 8:
            self.errors.append(f"{what}: out of luck")
            return {}
        return {
            "side_by_side": backend == "right", "threads": 1, "start_s": 2.0,
            "stage_ms": dict.fromkeys(STAGES, 2.0), "frames": 3, "fps": 50.0,
            "ms": {"p50": 20.0, "p95": 30.0}, "memory_mb": {"steady": 100.0, "peak": 200.0},
        }  # fmt: skip


def survey_of(*backends, steps=1, resolution=(320, 240)):
    return {
        "model": "fake", "trained": True, "steps": steps, "resolution": resolution,
        "classes": 12, "backends": list(backends), "device": "cpu",
    }  # fmt: skip


def test_a_backend_without_parity_is_not_timed_and_a_failure_is_told(tmp_path, monkeypatch):
    fields = vars(benchmark_in(tmp_path))
    monkeypatch.setattr(engine_runs, "survey", lambda *_: survey_of("wrong", "right", "eager"))
    for width, height in (VGA, HD):
        (tmp_path / f"frames_{width}x{height}.npy").touch()
    run = FakeBenchmark(**fields)
    found = run_engine(run)
    assert {backend for _, backend, _ in run.timed} == {"right", "eager"}
    assert [each for each in run.timed if each[2] == "cold_cache"] == run.timed[:1]
    assert run.errors == [
        "parity of wrong: too far",
        "right, 8 steps at 320x240: out of luck",
    ]
    text = page(results_of(engine=found, errors=run.errors))
    assert "### What could not be measured\n\n- parity of wrong: too far" in text
    assert "right differs by 0.100 grey levels" in text
    assert not [row for row in found["engine"] if (row["backend"], row["steps"]) == ("right", 8)]
    assert [row.get("cold_start_s") for row in found["engine"][:2]] == [2.0, None]


def test_a_backend_that_leaves_a_part_to_pytorch_is_not_timed(small_model, tmp_path, monkeypatch):
    monkeypatch.setattr(FuseEngine, "parts_warning", "eager on cpu runs fusion in PyTorch")
    np.save(tmp_path / "frames.npy", np.zeros((1, 48, 64, 3), np.uint8))
    settings = {"model": str(small_model), "device": "cpu", "backend": "eager"}
    settings["resolution"] = (64, 48)
    how = {"frames": str(tmp_path / "frames.npy"), "seconds": 0.0, "least": 1, "spawned": 0.0}
    with pytest.raises(RuntimeError, match="runs fusion in PyTorch"):
        measurements.engine(settings=settings, **how)


# --- what is planned -----------------------------------------------------------------------------


@pytest.mark.parametrize("backends", [("openvino", "eager"), ("eager",)])
def test_the_plan_has_every_step_and_every_resolution_once(backends):
    survey = survey_of(*backends)
    cases = plan(survey, quick=False)
    assert str(cases[0]) == f"{backends[0]}, 1 steps at 320x240"
    assert len(set(cases)) == len(cases)
    in_turn = Case(backends[0], 1, (320, 240), "off")
    for backend in backends:
        of_one = [case for case in cases if case.backend == backend]
        assert {case.steps for case in of_one if case.resolution == (320, 240)} == set(STEPS)
        assert {case.resolution for case in of_one if case.steps == 1} == set(RESOLUTIONS)
    assert in_turn in cases
    assert len(cases) == len(backends) * (len(STEPS) + len(RESOLUTIONS) - 1) + 1


def test_the_camera_fills_the_resolution():
    cases = [Case("eager", 1, size) for size in RESOLUTIONS]
    assert [case.camera for case in cases] == [VGA, VGA, VGA, HD]


# --- what is worked out --------------------------------------------------------------------------


def test_segformer_is_b0_and_says_a_class_for_every_fourth_pixel():
    peer = segformer_b0(12)
    millions = sum(parameter.numel() for parameter in peer.parameters()) / 1e6
    assert millions == pytest.approx(3.7, abs=0.05)
    with torch.inference_mode():
        logits = peer(torch.zeros(1, 3, 64, 96))
    assert logits.shape == (1, 12, 16, 24)
    again = segformer_b0(12)
    assert all(map(torch.equal, peer.parameters(), again.parameters()))


def test_drift_leaves_the_warm_up_out():
    # It fills for a minute and then grows by 2 MB a minute.
    samples = []
    for second in range(601):
        mb = 400.0 + (second * 5.0 if second < 60 else 300.0 + (second - 60) / 30)
        threads = 9 + (mb > 705.0)
        samples.append(Usage(float(second), mb, 800.0, threads, 40, cpu_s=second * 0.5))
    # 10 fps, from the half of the run on 9.
    received, at_s = {}, 0.0
    while at_s < 600.0:
        received[round(at_s * 1e9)] = round(at_s * 1e9) + 5 * MS
        at_s += 1 / 10 if at_s < 300.0 else 1 / 9
    session = Session(sent_ns=list(received), outputs_ns={MAGIMG: received})
    found = drift(samples, session)
    assert (found["minutes"], found["warm_up_s"]) == (10.0, 60.0)
    assert found["memory_slope_mb_per_hour"] == pytest.approx(120.0)
    assert found["memory_mb"] == pytest.approx({"first": 700.0, "last": 718.0, "max": 718.0})
    assert found["threads"] == {"first": 9, "last": 10, "max": 10}
    assert found["descriptors"] == {"first": 40, "last": 40, "max": 40}
    assert found["fps"]["first"] == pytest.approx(10.0, abs=0.05)
    assert found["fps"]["last"] == pytest.approx(9.0, abs=0.05)
    row = figures(session, samples) | {
        "camera": VGA, "rate_hz": 10.0, "drift": found, "active_s": 3.0,
    }  # fmt: skip
    text = page(results_of(soak=row))
    assert "| 640x480 at 10 Hz, soak |" in text
    assert "Soak of 10.0 minutes, from 60 s on: memory 700.0 → 718.0, at most 718.0 MiB" in text
    assert "(+120.00 MiB/h); file descriptors 40 → 40, at most 40; threads 9 → 10" in text
    assert "age on arrival here p50 5, p95 5, p99.9 5, max 5 ms" in text


def words(**stages):
    return {
        f"stage_ms.{name}.{part}": str(value)
        for name, value in stages.items()
        for part in ("p50", "p95", "max")
    }


def test_the_share_of_ros_leaves_the_wait_out():
    said = words(
        wait=50.0, read=2.0, encode=28.0, denoise=60.0, decode=2.0, publish=8.0, total=150.0
    )
    assert ros_percent(said) == pytest.approx(10.0)
    assert ros_percent({}) is None


def test_a_nodes_run_counts_only_what_it_sent_itself():
    before = {"frames_in": "10", "frames_out": "4", "dropped.replaced": "6"}
    after = {"frames_in": "19", "frames_out": "8", "dropped.replaced": "11", "backend": "b"}
    session = Session(before=before, diagnostics=after | words(read=1.0, publish=1.0, fuse=8.0))
    session.sent_ns = [index * 100 * MS for index in range(10)]
    arrived = {stamp: stamp + 40 * MS for stamp in session.sent_ns[::3]}
    session.outputs_ns[MAGIMG] = arrived
    samples = [
        Usage(float(second), 300.0 + second, 310.0, 12, 40, cpu_s=second * 0.5)
        for second in range(3)
    ]
    found = figures(session, samples)
    counts = ("sent", "out", "dropped", "lost", "received")
    assert [found[name] for name in counts] == [10, 4, {"replaced": 5}, 1, 4]
    assert found["accounted"]
    assert found["fps_out"] == pytest.approx(3 / 0.9)
    assert found["ros_percent"] == pytest.approx(20.0)
    assert found["cpu_percent"] == pytest.approx(50.0)
    assert found["arrival_age_ms"]["p99.9"] == pytest.approx(40.0)
    after["frames_in"] = "20"  # a frame is still under way: the account is open
    session.diagnostics = after
    assert not figures(session, samples)["accounted"]


# --- what is claimed -----------------------------------------------------------------------------


def results_of(**parts):
    return {"machine": describe(), "quick": False, "errors": []} | parts


def test_claims_of_a_run_that_measured_nothing_are_open():
    made = claims(results_of())
    assert all(claim.value is None and claim.holds is None for claim in made)
    assert page(results_of()).count("### ") == 1


def test_claims_take_the_right_rows():
    def row(backend, steps, parallel, p50, resolution=(320, 240)):
        return {
            "backend": backend, "steps": steps, "parallel": parallel,
            "resolution": resolution, "ms": {"p50": p50, "p95": p50 + 10.0},
            "side_by_side": parallel != "off", "start_s": 6.0, "cold_start_s": 30.0,
        }  # fmt: skip

    engine = {
        "survey": survey_of("openvino", "eager"),
        "engine": [
            row("openvino", 1, "auto", 7.0, VGA),
            row("openvino", 1, "auto", 80.0),
            row("openvino", 1, "off", 100.0),
            row("openvino", 25, "off", 999.0),
            row("eager", 1, "off", 150.0),
            row("eager", 25, "off", 3200.0),
        ],
        "peers": [
            {"backend": "eager", "ms": {"p50": 1.0}},
            {"backend": "openvino", "ms": {"p50": 160.0}},
        ],
    }
    node = [
        {"camera": VGA, "rate_hz": 10.0},
        {"camera": HD, "rate_hz": 30.0},
        {
            "camera": VGA, "rate_hz": 30.0, "fps_out": 11.5, "age_ms": {"p95": 180.0},
            "ros_percent": 8.0, "memory_mb": {"steady": 700.0},
        },
    ]  # fmt: skip
    soak = {"drift": {"memory_slope_mb_per_hour": -0.25}}
    made = claims(results_of(engine=engine, node=node, soak=soak))
    assert [(claim.value, claim.holds) for claim in made] == [
        (11.5, True),
        (2.0, False),  # 180 against 90
        (40.0, True),
        (0.5, True),
        (0.8, None),
        (8.0, True),
        (30.0, None),
        (6.0, False),
        (700.0, True),
        (-0.25, None),
    ]


def test_a_claim_is_judged_by_its_relation():
    assert Claim("fast", 2.0, "fps", least=2.0).holds is True
    assert Claim("fast", 1.9, "fps", least=2.0).holds is False
    assert Claim("small", 2.1, "MB", most=2.0).holds is False
    assert Claim("told", 2.1, "MB").holds is None


# --- the machine ---------------------------------------------------------------------------------


def test_usage_sees_memory_threads_and_descriptors(tmp_path):
    before, done = usage(), threading.Event()
    ballast = b"1" * (64 * 2**20)
    thread = threading.Thread(target=done.wait)
    thread.start()
    with (tmp_path / "file").open("wb"):
        during = usage()
    done.set()
    thread.join()
    assert len(ballast) == 64 * 2**20
    assert 60.0 < during.memory_mb - before.memory_mb < 80.0
    assert during.peak_mb >= during.memory_mb
    assert during.threads == before.threads + 1
    assert during.descriptors == before.descriptors + 1


def test_usage_counts_processor_time():
    before, end = usage().cpu_s, time.process_time() + 0.1
    while time.process_time() < end:
        math.sqrt(2.0)
    assert usage().cpu_s - before >= 0.05


def test_usage_of_no_process_is_an_error():
    with pytest.raises(BenchmarkError, match="process 999999999 cannot be watched"):
        usage(999_999_999)


def test_the_machine_is_described_without_naming_it():
    found = describe()
    assert found["cores"] >= 1
    assert found["cpu"]
    assert found["versions"]["torch"] == torch.__version__
    told = json.dumps(found)
    assert os.uname().nodename not in told
    assert str(Path.home()) not in told
