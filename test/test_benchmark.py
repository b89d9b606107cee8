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
from support.small_models import SMALL_FEW_STEP, save_few_step
from torch import nn

from magicfuse_ros.cli import main
from magicfuse_ros.commands.benchmark_node import Sample, drift, figures, ros_share
from magicfuse_ros.commands.node_session import MAGIMG, Session
from magicfuse_ros.evaluation.benchmark import engine_runs, measurements
from magicfuse_ros.evaluation.benchmark.claims import Claim, claims
from magicfuse_ros.evaluation.benchmark.engine_runs import (
    HD,
    RESOLUTIONS,
    STEPS,
    VGA,
    Case,
    EngineRuns,
    plan,
)
from magicfuse_ros.evaluation.benchmark.machine import BenchmarkError, Usage, describe, usage
from magicfuse_ros.evaluation.benchmark.page import errors, page
from magicfuse_ros.evaluation.segformer import segformer_b0
from magicfuse_ros.model.magicfuse import MagicFuse

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
    assert survey["matmul_gflops"] > 0.0
    rows = {(row["asked"], row["steps"], row["parallel"]) for row in results["engine"]["engine"]}
    assert rows == {("auto", 2, "auto"), ("eager", 25, "off")}
    parity = results["engine"]["parity"]
    assert {row["asked"] for row in parity} == {*survey["backends"]} - {"eager"}
    assert all(row["passed"] for row in parity)
    assert "A QUICK RUN" in out
    told = json.loads(out.splitlines()[-1])
    assert told == {claim["name"]: claim["value"] for claim in results["claims"]}


def test_a_quick_runs_engine_figures_make_sense(quick):
    engine = quick[0]["engine"]
    for row in [*engine["engine"], *engine["peers"]]:
        times = row["ms"]
        assert 0.0 < times["p50"] <= times["p95"] <= times["max"]
        assert row["frames"] == 3
        assert row["fps"] == pytest.approx(1e3 / times["mean"])
        assert 0.0 < row["memory_mb"]["steady"] <= row["memory_mb"]["peak"]
        assert row["peak_share"] == pytest.approx(row["gflops"] / engine["survey"]["matmul_gflops"])
    for row in engine["engine"]:
        assert set(row["stage_ms"]) >= {"preprocess", *measurements.NETWORK_STAGES, "postprocess"}
        assert min(row["stage_ms"].values()) >= 0.0
        assert row["gflops"] == pytest.approx(row["gflop"] / row["network_ms"] * 1e3)
    default, reference = engine["engine"]
    for row in (default, reference):
        parts = dict(row["start_s"])
        assert parts.pop("total") == pytest.approx(sum(parts.values()))


def test_a_quick_runs_frames_add_up(quick):
    (row,) = quick[0]["node"]
    assert (row["camera"], row["rate_hz"]) == ([640, 480], 30.0)
    assert row["accounted"]
    assert row["sent"] == row["out"] + sum(row["dropped"].values()) + row["lost"]
    assert 0 < row["received"] <= row["out"] <= row["sent"]
    age = row["age_ms"]
    assert 0.0 < age["p50"] <= age["p95"] <= age["max"] < 60_000.0
    assert 0.0 < row["ros_share"] < 1.0
    assert row["cpu_percent"] > 0.0
    assert 0.0 < row["memory_mb"]["steady"] <= row["memory_mb"]["peak"]
    assert row["backend"] == quick[0]["engine"]["engine"][0]["backend"]


def test_a_quick_runs_claims_are_its_own_figures(quick):
    results = quick[0]
    measured = {claim["name"]: claim["value"] for claim in results["claims"]}
    assert measured.pop("memory's slope over the soak") is None
    assert measured.pop("cold start to first fused frame") is None
    assert measured.pop("Ψ and Φ side by side to in turn") is None
    assert all(math.isfinite(value) and value > 0.0 for value in measured.values())
    default, reference = results["engine"]["engine"]
    assert (default["asked"], reference["steps"]) == ("auto", 25)
    speed_up = measured["faster than 25 steps, eager, Ψ then Φ"]
    assert speed_up == pytest.approx(reference["ms"]["p50"] / default["ms"]["p50"])


def test_a_quick_runs_page_has_tables_a_picture_and_no_paths(quick, small_model):
    results, _, markdown = quick
    text = markdown.read_text(encoding="utf-8")
    for title in ("What this run shows", "Engine", "Node"):
        assert f"### {title}\n" in text
    assert "| SegFormer-B0, " in text
    assert "![time and work of a frame](images/page.png)" in text
    picture = cv2.imread(str(markdown.parent / "images" / "page.png"))
    assert picture.std() > 10.0
    assert (markdown.parent / "images" / "page.png").stat().st_size < 150_000
    told = text + json.dumps(results)
    for path in (markdown.parent, small_model, ROOT, Path.home(), sys.prefix):
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


def nothing():
    pass


def test_a_measurement_that_fails_says_why(tmp_path):
    with pytest.raises(BenchmarkError, match=r"nonsense: unknown; accepted: survey, parity"):
        engine_runs.measure("nonsense", tmp_path, nothing)


def test_a_measurement_that_dies_says_its_last_words(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho out of luck >&2\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(BenchmarkError, match="survey ended with status -9: out of luck"):
        engine_runs.measure("survey", tmp_path, nothing)


def test_who_stops_waiting_leaves_no_process(tmp_path, monkeypatch):
    class EnoughError(Exception):
        pass

    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))

    def check():
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            raise EnoughError

    with pytest.raises(EnoughError):
        engine_runs.measure("survey", tmp_path, check)
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_a_backend_that_is_itself_has_parity(tmp_path, small_model):
    y, x = np.mgrid[0:96, 0:128]
    pictures = [np.stack([x * 2, y * 2 + i * 9, (x // 8 + y // 8) % 2 * 200], -1) for i in range(2)]
    np.save(tmp_path / "frames.npy", np.stack(pictures).astype(np.uint8))
    settings = {"model": str(small_model), "backend": "eager", "steps": 2, "resolution": [64, 48]}
    found = measurements.parity(
        settings=settings | {"parallel": "off"}, frames=str(tmp_path / "frames.npy")
    )
    assert found == {"magimg_mean": 0.0, "mask_agreement": 1.0}


class FakeMeasure:
    """Answers as a machine with two backends, one of which computes something else."""

    def __init__(self):
        self.timed = []

    def __call__(self, job, **arguments):
        if job == "survey":
            return survey_of("wrong", "right", "eager")
        backend = arguments.get("backend") or arguments["settings"]["backend"]
        if job == "parity":
            apart = 5.0 if backend == "wrong" else 0.1
            return {"magimg_mean": apart, "mask_agreement": 1.0}
        self.timed.append((job, backend))
        if backend == "right" and arguments.get("settings", {}).get("steps") == 8:
            raise BenchmarkError("engine: out of luck")
        start_s = dict.fromkeys(("total", "import", "warm_up", "first_frame"), 1.0)
        stages = dict.fromkeys(("preprocess", *measurements.NETWORK_STAGES, "postprocess"), 2.0)
        return {
            "backend": f"{backend} on cpu", "side_by_side": backend == "right", "threads": 1,
            "start_s": start_s, "stage_ms": stages, "network_ms": 8.0,
            "memory_mb": {"steady": 100.0, "peak": 200.0}, "load": 0.5,
            **measurements.summary([10.0, 20.0, 30.0]),
        }  # fmt: skip


def survey_of(*backends, steps=1, resolution=(320, 240)):
    work = {"input": [320, 240], "once": 2.0, "step": 3.0, "peer": 1.0}
    return {
        "model": "fake", "trained": True, "steps": steps, "resolution": list(resolution),
        "classes": 12, "backends": list(backends), "device": "cpu", "device_name": "",
        "threads": 2, "matmul_gflops": 100.0,
        "work": {f"{w}x{h}": work for w, h in (resolution, *RESOLUTIONS)},
    }  # fmt: skip


def test_a_backend_without_parity_is_not_timed_and_a_failure_is_told():
    measure = FakeMeasure()
    runs = EngineRuns(
        settings={"model": "fake", "device": "cpu", "threads": 0},
        quick=False,
        frames=lambda size: Path(f"{size}"),
        show=lambda _text: None,
        measure=measure,
    )
    found = runs.run()
    assert not {("engine", "wrong"), ("engine", "auto"), ("peer", "wrong")} & {*measure.timed}
    results = results_of(engine=found)
    told = "\n".join(errors(results))
    assert "parity, wrong: too far from eager, not timed" in told
    assert "engine, right, 8 steps at 320x240: engine: out of luck" in told
    assert "### What could not be measured" in page(results)
    assert "right differs by 0.100 grey levels" in page(results)
    assert [row["asked"] for row in found["engine"] if "cold_start_s" in row] == ["right"]
    (row,) = [
        row for row in found["engine"] if (row["asked"], row["steps"]) == ("eager", 25)
    ]  # fmt: skip
    assert row["gflop"] == 2.0 + 25 * 3.0
    assert row["gflops"] == pytest.approx(77.0 / 8.0 * 1e3)
    assert row["peak_share"] == pytest.approx(row["gflops"] / 100.0)


# --- what is planned -----------------------------------------------------------------------------


@pytest.mark.parametrize("backends", [("openvino", "eager"), ("eager",)])
def test_the_plan_has_every_step_and_every_resolution_once(backends):
    survey = survey_of(*backends)
    cases = plan(survey, quick=False)
    assert str(cases[0]) == "auto, 1 steps at 320x240"
    assert len(set(cases)) == len(cases)
    in_turn = Case(backends[0], 1, (320, 240), "off")
    for backend in backends:
        of_one = [case for case in cases if case.backend == backend]
        of_one += [cases[0]] if backend == backends[0] else []
        assert {case.steps for case in of_one if case.resolution == (320, 240)} == set(STEPS)
        assert {case.resolution for case in of_one if case.steps == 1} == set(RESOLUTIONS)
    assert in_turn in cases
    assert len(cases) == len(backends) * (len(STEPS) + len(RESOLUTIONS) - 1) + 1


def test_the_camera_fills_the_resolution():
    cases = [Case("eager", 1, size) for size in RESOLUTIONS]
    assert [case.camera for case in cases] == [VGA, VGA, VGA, HD]


# --- what is worked out --------------------------------------------------------------------------


def test_work_is_counted_as_two_operations_a_multiplication():
    convolution = nn.Conv2d(3, 8, 3, padding=1, bias=False, device="meta")
    image = torch.empty(1, 3, 16, 20, device="meta")
    counted = measurements._gflop(lambda: convolution(image))
    assert counted == pytest.approx(2 * 3 * 8 * 9 * 16 * 20 / 1e9)


def test_work_grows_by_the_same_for_every_step():
    with torch.device("meta"):
        network = MagicFuse.from_config(SMALL_FEW_STEP)
    one, two, three = (measurements.frame_gflop(network, (48, 64), n) for n in (1, 2, 3))
    assert three - two == pytest.approx(two - one)
    assert 0.0 < two - one < one


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
        samples.append(Sample(float(second), Usage(mb, 800.0, threads, 40, cpu_s=second * 0.5)))
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
    assert len(found["series"]["minute"]) == len(found["series"]["memory_mb"]) <= 120
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
    assert ros_share(said) == pytest.approx(0.1)
    assert ros_share({}) is None


def test_a_nodes_run_counts_only_what_it_sent_itself():
    before = {"frames_in": "10", "frames_out": "4", "dropped.replaced": "6"}
    after = {"frames_in": "19", "frames_out": "8", "dropped.replaced": "11", "backend": "b"}
    session = Session(before=before, diagnostics=after | words(read=1.0, publish=1.0, fuse=8.0))
    session.sent_ns = [index * 100 * MS for index in range(10)]
    arrived = {stamp: stamp + 40 * MS for stamp in session.sent_ns[::3]}
    session.outputs_ns[MAGIMG] = arrived
    samples = [
        Sample(float(second), Usage(300.0 + second, 310.0, 12, 40, cpu_s=second * 0.5))
        for second in range(3)
    ]
    found = figures(session, samples)
    counts = ("sent", "out", "dropped", "lost", "received")
    assert [found[name] for name in counts] == [10, 4, {"replaced": 5}, 1, 4]
    assert found["accounted"]
    assert found["fps_out"] == pytest.approx(3 / 0.9)
    assert found["ros_share"] == pytest.approx(0.2)
    assert found["cpu_percent"] == pytest.approx(50.0)
    assert found["arrival_age_ms"]["p99.9"] == pytest.approx(40.0)
    after["frames_in"] = "20"  # a frame is still under way: the account is open
    session.diagnostics = after
    assert not figures(session, samples)["accounted"]


# --- what is claimed -----------------------------------------------------------------------------


def results_of(**parts):
    return {"machine": describe() | {"load_at_end": 0.0}, "quick": False} | parts


def test_claims_of_a_run_that_measured_nothing_are_open():
    made = claims(results_of())
    assert all(claim.value is None and claim.holds is None for claim in made)
    assert page(results_of()).count("### ") == 1


def test_claims_take_the_right_rows():
    def row(asked, steps, parallel, p50, resolution=(320, 240)):
        return {
            "asked": asked, "backend": "openvino on cpu", "steps": steps, "parallel": parallel,
            "resolution": list(resolution), "ms": {"p50": p50, "p95": p50 + 10.0},
            "side_by_side": parallel != "off", "start_s": {"total": 6.0},
            "cold_start_s": {"total": 30.0},
        }  # fmt: skip

    engine = {
        "survey": survey_of("openvino", "eager"),
        "engine": [
            row("openvino", 1, "auto", 7.0, VGA),
            row("auto", 1, "auto", 80.0),
            row("openvino", 1, "off", 100.0),
            row("openvino", 25, "off", 999.0),
            row("eager", 1, "off", 150.0),
            row("eager", 25, "off", 3200.0),
        ],
        "peers": [
            {"asked": "eager", "ms": {"p50": 1.0}},
            {"asked": "openvino", "ms": {"p50": 160.0}},
        ],
    }
    node = [
        {"camera": [640, 480], "rate_hz": 10.0},
        {"camera": [1280, 720], "rate_hz": 30.0},
        {
            "camera": [640, 480], "rate_hz": 30.0, "fps_out": 11.5, "age_ms": {"p95": 180.0},
            "ros_share": 0.08, "memory_mb": {"steady": 700.0},
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
    assert Claim("fast", 2.0, "fps", "", "≥", 2.0).holds is True
    assert Claim("fast", 1.9, "fps", "", "≥", 2.0).holds is False
    assert Claim("small", 2.1, "MB", "", "≤", 2.0).holds is False
    assert Claim("told", 2.1, "MB", "").holds is None


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
