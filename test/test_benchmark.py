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

import cv2
import numpy as np
import pytest
import torch
from support.small_models import SMALL_FEW_STEP
from torch import nn

from magicfuse_ros.commands.benchmark_node import NodeRun, Sample, report, ros_share
from magicfuse_ros.commands.node_session import MAGIMG, Session
from magicfuse_ros.evaluation.benchmark import metrics, worker
from magicfuse_ros.evaluation.benchmark.claims import Claim, claims
from magicfuse_ros.evaluation.benchmark.engine import EngineBenchmark, frame_gflop
from magicfuse_ros.evaluation.benchmark.machine import BenchmarkError, Usage, facts, usage
from magicfuse_ros.evaluation.benchmark.plan import (
    HD,
    RESOLUTIONS,
    STEPS,
    VGA,
    Effort,
    camera_of,
    plan,
    starts_of,
)
from magicfuse_ros.evaluation.benchmark.process import Workers
from magicfuse_ros.evaluation.benchmark.report import errors, markdown
from magicfuse_ros.evaluation.benchmark.tables import tables
from magicfuse_ros.evaluation.segformer import segformer_b0
from magicfuse_ros.model.magicfuse import MagicFuse

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 420  # a machine that is busy with something else imports PyTorch in a minute
MS = 1_000_000


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small"
    torch.manual_seed(0)
    MagicFuse.from_config(SMALL_FEW_STEP).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    path = tmp_path_factory.mktemp("frames") / "frames.npy"
    y, x = np.mgrid[0:96, 0:128]
    pictures = [np.stack([x * 2, y * 2 + i * 9, (x // 8 + y // 8) % 2 * 200], -1) for i in range(2)]
    np.save(path, np.stack(pictures).astype(np.uint8))
    return path


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
    output, page = folder / "results.json", folder / "page.md"
    process = start("--quick", "--model", small_model, "--output", output, "--markdown", page)
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    print(out)
    assert process.returncode == 0, err
    return json.loads(output.read_text(encoding="utf-8")), out, page


def test_a_quick_run_has_every_part(quick):
    results, out, _ = quick
    assert results["errors"] == []
    assert results["grid"] == "quick"
    assert results["model"] == "small"
    survey = results["engine"]["survey"]
    assert (survey["steps"], survey["resolution"], survey["classes"]) == (2, [64, 48], 12)
    assert "eager" in survey["backends"]
    assert survey["matmul_gflops"] > 0.0
    configurations = {
        (row["asked"], row["steps"], row["parallel"]) for row in results["engine"]["engine"]
    }
    best = survey["backends"][0]
    assert configurations == {
        ("auto", 2, "auto"),
        *((best, 2, side) for side in survey["sides"][best]),
        ("eager", 25, "off"),
    }
    assert {row["asked"] for row in results["engine"]["parity"]} == {
        name for name in survey["backends"] if name != "eager"
    }
    assert all(row["passed"] for row in results["engine"]["parity"])
    assert "A QUICK RUN" in out


def test_a_quick_runs_engine_figures_make_sense(quick):
    engine = quick[0]["engine"]
    for row in [*engine["engine"], *engine["peers"]]:
        times = row["ms"]
        assert 0.0 < times["min"] <= times["p50"] <= times["p95"] <= times["max"]
        assert row["frames"] == 3
        assert row["fps"] == pytest.approx(1e3 / times["mean"])
        assert 0.0 < row["memory_mb"]["steady"] <= row["memory_mb"]["peak"]
        assert row["peak_share"] == pytest.approx(row["gflops"] / engine["survey"]["matmul_gflops"])
    for row in engine["engine"]:
        assert set(row["stage_ms"]) >= {"preprocess", *worker.NETWORK_STAGES, "postprocess"}
        assert min(row["stage_ms"].values()) >= 0.0
        work = frame_gflop(engine["survey"]["inputs"][0]["gflop"], row["steps"])
        assert row["gflop"] == pytest.approx(work)
        assert row["gflops"] == pytest.approx(work / row["network_ms"] * 1e3)
    (begun,) = engine["start"]
    for temperature in ("cold", "warm"):
        parts = dict(begun[temperature])
        assert parts.pop("total") == pytest.approx(sum(parts.values()))


def test_a_quick_runs_frames_add_up(quick):
    (run,) = quick[0]["node"]["640x480"].values()
    own, named = run["custom"], "BasicPerformanceMetrics."
    count = own["frames"]
    assert own["accounted"]
    assert count["sent"] == count["out"] + sum(count["dropped"].values()) + count["lost_on_the_way"]
    assert 0 < count["received"] <= count["out"] <= count["sent"]
    assert run[f"{named}NUM_FRAMES_SENT"] == count["sent"]
    assert run[f"{named}NUM_MISSED_FRAMES"] == count["sent"] - count["received"]
    assert run[f"{named}MIN_LATENCY"] <= run[f"{named}MEAN_LATENCY"] <= run[f"{named}MAX_LATENCY"]
    assert 0.0 <= run["ResourceMetrics.MEAN_OVERALL_CPU_UTILIZATION"] <= 100.0
    age = own["age_at_publish_ms"]
    assert 0.0 < age["p50"] <= age["p95"] <= age["max"] < 60_000.0
    assert 0.0 < own["ros_share"] < 1.0
    assert own["node_cpu_percent"] > 0.0
    assert 0.0 < own["memory_mb"]["steady"] <= own["memory_mb"]["peak"]
    assert own["backend"] == quick[0]["engine"]["engine"][0]["backend"]


def test_a_quick_runs_claims_are_its_own_figures(quick):
    results = quick[0]
    measured = {claim["name"]: claim["value"] for claim in results["claims"]}
    assert measured.pop("memory's slope over the soak") is None
    survey = results["engine"]["survey"]
    if "on" not in survey["sides"][survey["backends"][0]]:
        assert measured.pop("Ψ and Φ side by side to in turn") is None
    assert all(math.isfinite(value) and value > 0.0 for value in measured.values())
    rows = results["engine"]["engine"]
    default, reference = rows[0], rows[-1]
    assert (default["asked"], reference["steps"]) == ("auto", 25)
    speed_up = measured["faster than 25 steps, eager, Ψ then Φ"]
    assert speed_up == pytest.approx(reference["ms"]["p50"] / default["ms"]["p50"])


def test_a_quick_runs_page_has_tables_a_picture_and_no_paths(quick, small_model):
    results, _, page = quick
    text = page.read_text(encoding="utf-8")
    for title in ("What this run shows", "Engine", "Peers", "Start-up", "Node"):
        assert f"### {title}\n" in text
    assert "![time and work of a frame](images/page.png)" in text
    picture = cv2.imread(str(page.parent / "images" / "page.png"))
    assert picture.std() > 10.0
    assert (page.parent / "images" / "page.png").stat().st_size < 150_000
    told = text + json.dumps(results)
    for path in (page.parent, small_model, ROOT, Path.home(), sys.prefix):
        assert str(path) not in told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_its_processes(small_model, number):
    mark = f"MAGICFUSE_TEST_MARK={uuid.uuid4()}"
    process = start("--quick", "--level", "engine", "--model", small_model, mark=mark)
    try:
        assert "surveying" in process.stderr.readline()
        process.send_signal(number)
        out, _ = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert marked(mark) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--threads", "-1"], "--threads is -1; accepted"),
        (["--soak", "1", "--level", "engine"], "does not go with --level engine"),
        (["--soak", "nan"], "a number of minutes above 0"),
        (["--output", "{}/none/x.json"], "its folder is missing"),
        (["--quick", "--level", "engine", "--model", "{}/none"], "none"),
    ],
)
def test_a_wrong_argument_is_one_line(tmp_path, arguments, text):
    process = start(*(word.format(tmp_path) for word in arguments))
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out) == (1, "")
    last = err.splitlines()[-1]
    assert last.startswith("magicfuse benchmark: ")
    assert text in last
    assert "Traceback" not in err


# --- workers -------------------------------------------------------------------------------------


def nothing():
    pass


def test_a_job_that_fails_says_why_and_the_next_is_done(tmp_path, small_model):
    calls = {"model": str(small_model), "device": "cpu", "threads": 1, "resolutions": []}
    with Workers(tmp_path, nothing, reuse=True) as workers:
        with pytest.raises(BenchmarkError, match=r"survey: device is 'abacus'; accepted"):
            workers.run("survey", tmp_path / "cache", **(calls | {"device": "abacus"}))
        assert workers.run("survey", tmp_path / "cache", **calls)["model"] == "small-few-step"
        workers._process.kill()
        with pytest.raises(BenchmarkError, match="ended with status -9"):
            workers.run("survey", tmp_path / "cache", **calls)


def test_who_stops_waiting_leaves_no_worker(tmp_path):
    class EnoughError(Exception):
        pass

    def check():
        raise EnoughError

    workers = Workers(tmp_path, check, reuse=False)
    seen = []
    begin = workers._start

    def remember(cache):
        seen.append(begin(cache))
        return seen[0]

    workers._start = remember
    with pytest.raises(EnoughError):
        workers.run("survey", tmp_path / "cache")
    assert seen[0].poll() == -signal.SIGKILL


def test_a_backend_that_is_itself_has_parity(small_model, frames):
    settings = {"model": str(small_model), "backend": "eager", "steps": 2, "resolution": [64, 48]}
    found = worker.parity(settings=settings | {"parallel": "off"}, frames=str(frames))
    assert found == {
        "backend": "eager on cpu",
        "frames": 2,
        "magimg_mean": 0.0,
        "magimg_max": 0,
        "confidence_max": 0,
        "mask_agreement": 1.0,
    }


class FakeWorkers:
    """Answers as a machine with two backends, one of which computes something else."""

    def __init__(self):
        self.timed = []

    def run(self, job, _cache, **arguments):
        if job == "survey":
            gflop = dict.fromkeys(
                ("encoder", "psi", "phi", "fusion", "decoder", "segformer-b0"), 1.0
            )
            inputs = [{"input": [320, 240], "gflop": gflop}] * (1 + len(arguments["resolutions"]))
            return survey_of("wrong", "right", "eager") | {"inputs": inputs}
        backend = arguments.get("backend") or arguments["settings"]["backend"]
        if job == "parity":
            apart = 5.0 if backend == "wrong" else 0.1
            return {"backend": backend, "magimg_mean": apart, "mask_agreement": 1.0, "frames": 1}
        self.timed.append((job, backend))
        if backend == "right" and arguments.get("settings", {}).get("steps") == 8:
            raise BenchmarkError("engine: out of luck")
        row = {"backend": f"{backend} on cpu", **worker.summary([10.0, 20.0, 30.0])}
        start_s = dict.fromkeys(("total", "import", "load", "warm_up", "first_frame"), 1.0)
        stages = dict.fromkeys(("preprocess", *worker.NETWORK_STAGES, "postprocess"), 2.0)
        memory = {"steady": 100.0, "peak": 200.0}
        return row | {
            "start_s": start_s, "stage_ms": stages, "network_ms": 8.0, "memory_mb": memory,
            "load": 0.5, "threads": 1,
        }  # fmt: skip


def survey_of(*backends, steps=1, resolution=(320, 240)):
    return {
        "model": "fake", "trained": True, "steps": steps, "resolution": list(resolution),
        "classes": 12, "backends": list(backends), "device": "cpu", "device_name": "",
        "threads": 2, "matmul_gflops": 100.0,
        "sides": {name: ["off"] if name == "eager" else ["off", "on"] for name in backends},
    }  # fmt: skip


def engine_results():
    workers = FakeWorkers()
    benchmark = EngineBenchmark(
        model="fake",
        device="cpu",
        threads=0,
        effort=Effort(),
        frames=lambda size: Path(f"{size}"),
        folder=Path("folder"),
        check=nothing,
        show=lambda _text: None,
    )
    return workers, benchmark._run(workers)


def test_a_backend_without_parity_is_not_timed_and_a_failure_is_told():
    workers, found = engine_results()
    assert ("engine", "wrong") not in workers.timed
    assert ("segformer", "wrong") not in workers.timed
    results = results_of(engine=found)
    told = "\n".join(errors(results))
    assert "parity, wrong: too far from eager, not timed" in told
    assert "engine, right, 8 steps at 320x240, Ψ and Φ in turn: engine: out of luck" in told
    assert "### What could not be measured" in markdown(results, None)
    (row,) = [
        row for row in found["engine"] if (row["asked"], row["steps"]) == ("eager", 25)
        and row["parallel"] == "off"
    ]  # fmt: skip
    assert row["gflop"] == 2.0 + 25 * 3.0
    assert row["gflops"] == pytest.approx(77.0 / 8.0 * 1e3)
    assert row["peak_share"] == pytest.approx(row["gflops"] / 100.0)


# --- what is planned -----------------------------------------------------------------------------


def test_the_cross_has_every_step_and_every_resolution():
    cases = plan("cross", survey_of("openvino", "eager"))
    assert str(cases[0]) == "auto, 1 steps at 320x240, Ψ and Φ as it likes"
    assert len(set(cases)) == len(cases)
    for backend, parallel in (("openvino", "on"), ("openvino", "off"), ("eager", "off")):
        of_one = [c for c in cases if (c.backend, c.parallel) == (backend, parallel)]
        assert {c.steps for c in of_one if c.resolution == (320, 240)} == set(STEPS)
        assert {c.resolution for c in of_one if c.steps == 1} == set(RESOLUTIONS)
        assert len(of_one) == len(STEPS) + len(RESOLUTIONS) - 1


def test_the_full_plan_is_the_product():
    cases = plan("full", survey_of("eager", steps=3, resolution=(96, 96)))
    expected = (len(STEPS) + 1) * (len(RESOLUTIONS) + 1)
    assert len(set(cases)) == len(cases) == expected + 1


def test_start_up_is_measured_once_for_a_backend_and_resolution():
    survey = survey_of("openvino", "eager")
    starts = starts_of(plan("cross", survey), survey)
    assert len(starts) == 2 * len(RESOLUTIONS)
    assert (starts[0].backend, starts[0].resolution) == ("auto", (320, 240))
    assert {case.parallel for case in starts} == {"auto"}


def test_the_camera_fills_the_resolution():
    assert [camera_of(size) for size in RESOLUTIONS] == [VGA, VGA, VGA, HD]


# --- what is worked out --------------------------------------------------------------------------


def test_work_is_counted_as_two_operations_a_multiplication():
    convolution = nn.Conv2d(3, 8, 3, padding=1, bias=False, device="meta")
    image = torch.empty(1, 3, 16, 20, device="meta")
    assert worker._gflop(convolution, image) == pytest.approx(2 * 3 * 8 * 9 * 16 * 20 / 1e9)


def test_work_of_the_parts_grows_with_the_picture():
    with torch.device("meta"):
        network = MagicFuse.from_config(SMALL_FEW_STEP)
    small, large = (worker.part_gflop(network, size) for size in ((48, 64), (96, 128)))
    for part in ("encoder", "decoder"):
        assert large[part] == pytest.approx(4.0 * small[part])
    for part in ("psi", "phi", "fusion"):
        assert large[part] > 4.0 * small[part] * 0.9


def test_segformer_is_b0_and_says_a_class_for_every_fourth_pixel():
    peer = segformer_b0(12)
    millions = sum(parameter.numel() for parameter in peer.parameters()) / 1e6
    assert millions == pytest.approx(3.7, abs=0.05)
    with torch.inference_mode():
        logits = peer(torch.zeros(1, 3, 64, 96))
    assert logits.shape == (1, 12, 16, 24)
    again = segformer_b0(12)
    assert all(map(torch.equal, peer.parameters(), again.parameters()))


def test_performance_metrics_are_those_of_ros2_benchmark():
    sent = [0, 100 * MS, 200 * MS, 300 * MS, 400 * MS]
    received = {0: 50 * MS, 200 * MS: 260 * MS, 400 * MS: 420 * MS}
    assert metrics.performance_metrics(sent, received) == pytest.approx({
        "BasicPerformanceMetrics.NUM_FRAMES_SENT": 5,
        "BasicPerformanceMetrics.NUM_MISSED_FRAMES": 2,
        "BasicPerformanceMetrics.MEAN_PLAYBACK_FRAME_RATE": 12.5,
        "BasicPerformanceMetrics.RECEIVED_DURATION": 370.0,
        "BasicPerformanceMetrics.MEAN_FRAME_RATE": 3 / 0.37,
        "BasicPerformanceMetrics.FIRST_SENT_RECEIVED_LATENCY": 50.0,
        "BasicPerformanceMetrics.LAST_SENT_RECEIVED_LATENCY": 20.0,
        "BasicPerformanceMetrics.FIRST_INPUT_LATENCY": 50.0,
        "BasicPerformanceMetrics.LAST_INPUT_LATENCY": 20.0,
        "BasicPerformanceMetrics.MEAN_LATENCY": 130 / 3,
        "BasicPerformanceMetrics.MIN_LATENCY": 20.0,
        "BasicPerformanceMetrics.MAX_LATENCY": 60.0,
        "BasicPerformanceMetrics.MEAN_JITTER": 50.0,
        "BasicPerformanceMetrics.STD_DEV_JITTER": 0.0,
        "BasicPerformanceMetrics.MIN_JITTER": 50.0,
        "BasicPerformanceMetrics.MAX_JITTER": 50.0,
    })  # fmt: skip
    assert metrics.frame_rate(received) == pytest.approx(2 / 0.37)


def test_performance_metrics_of_nothing():
    named = "BasicPerformanceMetrics."
    assert metrics.performance_metrics([5], {}) == {
        f"{named}NUM_FRAMES_SENT": 1.0,
        f"{named}NUM_MISSED_FRAMES": 1.0,
    }
    assert metrics.frame_rate({}) == 0.0


def test_a_slope_is_the_lines():
    seconds = np.arange(0.0, 600.0, 7.0)
    assert metrics.slope_per_hour(seconds, 300.0 + seconds * 0.05) == pytest.approx(180.0)
    assert metrics.slope_per_hour(seconds, np.full_like(seconds, 9.0)) == pytest.approx(0.0)
    assert metrics.slope_per_hour([1.0], [5.0]) == 0.0


def test_drift_leaves_the_warm_up_out():
    seconds = [float(second) for second in range(601)]
    # It fills for a minute and then grows by 2 MB a minute.
    memory = [
        400.0 + (second * 5.0 if second < 60 else 300.0 + (second - 60) / 30) for second in seconds
    ]
    usages = [
        {"memory_mb": mb, "threads": 9 + (mb > 705.0), "descriptors": 40} for mb in memory
    ]  # fmt: skip
    # 10 fps, from the half of the run on 9.
    received, at_s = {}, 0.0
    while at_s < 600.0:
        received[round(at_s * 1e9)] = round(at_s * 1e9) + 5 * MS
        at_s += 1 / 10 if at_s < 300.0 else 1 / 9
    found = metrics.drift(seconds, usages, received)
    assert (found["minutes"], found["warm_up_s"]) == (10.0, 60.0)
    assert found["memory_slope_mb_per_hour"] == pytest.approx(120.0)
    assert found["memory_mb"] == pytest.approx({"first": 700.0, "last": 718.0, "max": 718.0})
    assert found["threads"] == {"first": 9, "last": 10, "max": 10}
    assert found["descriptors"] == {"first": 40, "last": 40, "max": 40}
    assert found["fps"]["first"] == pytest.approx(10.0, abs=0.05)
    assert found["fps"]["last"] == pytest.approx(9.0, abs=0.05)
    assert found["fps"]["drift_percent"] == pytest.approx(-10.0, abs=0.6)
    assert len(found["series"]["minute"]) == len(found["series"]["memory_mb"]) <= 120
    own = {
        "camera": VGA,
        "rate_hz": 10.0,
        "frames": {
            "sent": 90, "out": 60, "dropped": {"replaced": 20, "non_finite": 9},
            "lost_on_the_way": 1, "received": 59,
        },
        "accounted": True,
        "age_on_arrival_ms": {"p50": 50.0, "p95": 60.0, "p99.9": 70.0, "max": 80.0},
    }  # fmt: skip
    table = tables(results_of(soak={"custom": own, "drift": found}))[-1]
    assert table.title == "Soak: 10.0 minutes, 640x480 at 10 Hz"
    shown = dict(table.rows)
    assert shown["memory's slope (MiB/h)"] == "+120.00"
    assert shown["threads"] == "9 → 10, at most 10"
    assert shown["of those: out, dropped, lost on the way"] == "60, 29, 1"
    assert shown["sent = out + dropped + lost"] == "yes"


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
    assert ros_share(said) == pytest.approx(0.1)
    assert ros_share({}) is None


def test_a_nodes_run_counts_only_what_it_sent_itself():
    before = {"frames_in": "10", "frames_out": "4", "dropped.replaced": "6"}
    after = {"frames_in": "19", "frames_out": "8", "dropped.replaced": "11", "backend": "b"}
    session = Session(before=before, diagnostics=after | words(read=1.0, publish=1.0, fuse=8.0))
    session.sent_ns = [index * 100 * MS for index in range(10)]
    arrived = {stamp: stamp + 40 * MS for stamp in session.sent_ns[::3]}
    session.outputs_ns[MAGIMG] = {-500 * MS: 1} | arrived  # one of the warm-up came late
    samples = [
        Sample(
            at_s=float(second),
            node=Usage(300.0 + second, 310.0, 12, 40, cpu_s=second * 0.5),
            camera=Usage(100.0, 100.0, 5, 20, cpu_s=second * 0.1),
            busy_s=second * 1.5,
            total_s=second * 2.0,
        )
        for second in range(3)
    ]
    run = NodeRun(camera=VGA, rate_hz=10.0, seconds=1.0)
    found = report(run, session, samples[:2], samples, active_s=3.0)
    own = found["custom"]
    assert own["frames"] == {
        "sent": 10,
        "out": 4,
        "dropped": {"replaced": 5},
        "lost_on_the_way": 1,
        "received": 4,
    }
    assert own["accounted"]
    assert own["ros_share"] == pytest.approx(0.2)
    assert own["node_cpu_percent"] == pytest.approx(50.0)
    assert own["age_on_arrival_ms"]["p99.9"] == pytest.approx(40.0)
    assert found["ResourceMetrics.MEAN_OVERALL_CPU_UTILIZATION"] == pytest.approx(75.0)
    assert found["BasicPerformanceMetrics.NUM_MISSED_FRAMES"] == 6
    after["frames_in"] = "20"  # a frame is still under way: the account is open
    session.diagnostics = after
    assert not report(run, session, samples[:2], samples, active_s=3.0)["custom"]["accounted"]


# --- what is claimed -----------------------------------------------------------------------------


def results_of(**parts):
    machine = facts() | {"load_at_end": 0.0}
    return {"machine": machine, "grid": "cross", "engine": None, "node": None, "soak": None} | parts


def test_claims_of_a_run_that_measured_nothing_are_open():
    made = claims(results_of())
    assert all(claim.value is None and claim.holds is None for claim in made)
    assert [table.title for table in tables(results_of())] == ["What this run shows"]


def test_claims_take_the_right_rows():
    def row(asked, steps, parallel, p50, resolution=(320, 240)):
        times = {"p50": p50, "p95": p50 + 10.0}
        return {
            "asked": asked, "backend": "openvino on cpu", "steps": steps, "parallel": parallel,
            "resolution": list(resolution), "ms": times,
        }  # fmt: skip

    engine = {
        "survey": survey_of("openvino", "eager"),
        "engine": [
            row("openvino", 1, "on", 7.0, VGA),
            row("auto", 1, "auto", 80.0),
            row("openvino", 1, "off", 100.0),
            row("openvino", 1, "on", 75.0),
            row("openvino", 25, "off", 999.0),
            row("eager", 1, "off", 150.0),
            row("eager", 25, "off", 3200.0),
        ],
        "peers": [
            {"asked": "eager", "ms": {"p50": 1.0}},
            {"asked": "openvino", "ms": {"p50": 160.0}},
        ],
        "start": [{"asked": "auto", "cold": {"total": 30.0}, "warm": {"total": 6.0}}],
    }
    own = {
        "fps_out": 11.5,
        "age_at_publish_ms": {"p95": 180.0},
        "ros_share": 0.08,
        "memory_mb": {"steady": 700.0},
    }
    node = {"640x480": {"10.0fps": {"custom": {}}, "30.0fps": {"custom": own}}}
    soak = {"drift": {"memory_slope_mb_per_hour": -0.25}}
    made = claims(results_of(engine=engine, node=node, soak=soak))
    assert [(claim.value, claim.holds) for claim in made] == [
        (11.5, True),
        (2.0, False),  # 180 against 90
        (40.0, True),
        (0.5, True),
        (0.75, None),
        (8.0, True),
        (6.0, False),
        (700.0, True),
        (-0.25, None),
    ]


def test_a_claim_has_a_limit_or_has_none():
    with pytest.raises(ValueError, match="one of ≥, ≤ with a limit"):
        Claim(name="fast", value=1.0, relation="<", limit=2.0)
    with pytest.raises(ValueError, match="or neither"):
        Claim(name="fast", value=1.0, relation="≥")


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
    found = facts()
    assert found["cores"] >= 1
    assert found["cpu"]
    assert found["versions"]["torch"] == torch.__version__
    told = json.dumps(found)
    assert os.uname().nodename not in told
    assert str(Path.home()) not in told
