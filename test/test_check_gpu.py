"""scripts/check_gpu: rehearsed whole on the CPU, and what it does where something is wrong."""

import importlib.util
import json
import subprocess
import sys
import time
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest
import torch
from support.small_models import SMALL_FEW_STEP, stored

from magicfuse_ros.runtime.parts import parts_of

SCRIPT = Path(__file__).parents[1] / "scripts" / "check_gpu"


@pytest.fixture(scope="module")
def script():
    loader = SourceFileLoader("check_gpu", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("check_gpu", loader))
    sys.modules["check_gpu"] = module
    loader.exec_module(module)
    yield module
    del sys.modules["check_gpu"]


def test_without_a_gpu_every_step_is_rehearsed(tmp_path):
    command = [sys.executable, SCRIPT, "--device", "cpu", "--output", tmp_path / "report"]
    # A machine that is busy with the other tests takes longer than a GPU's.
    command += ["--seconds", "400"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=420)
    results = json.loads((tmp_path / "report.json").read_text())
    page = (tmp_path / "report.md").read_text()
    assert page.strip() in done.stdout
    assert results["machine"]["GPU"] == "none: a rehearsal"
    steps = results["steps"]
    assert list(steps) == ["build", "measure", "profile", "parity", "fusion", "tests"]
    late = [name for name, step in steps.items() if step["status"] == "out of time"]
    assert {name: step for name, step in steps.items() if step["status"] == "failed"} == {}
    assert done.returncode == (1 if late else 0)
    for name in set(steps) - set(late):
        assert f"## {name}: done" in page
    found = {name: step["found"] for name, step in steps.items() if name not in late}
    assert {row["model"] for row in found.get("measure", [])} <= {"tiny", "random"}
    assert all(row["p50 (ms)"] > 0 for row in found.get("measure", []))
    assert found.get("parity", [{"mask_agreement": 1.0}])[0]["mask_agreement"] == 1.0
    if "fusion" in found:
        compared, old = found["fusion"]
        assert compared["operators compared"] > 30
        assert compared["that differ"] == 0
        assert list(old.values()) == [0.0]
    assert "timeline" in found.get("profile", [{"timeline": []}])[-1]
    assert found.get("tests", [{"passed": 1}])[0]["passed"] == 1


def test_where_there_is_no_gpu_it_says_what_to_do(script, tmp_path, capsys):
    assert script.main(["--output", str(tmp_path / "report")]) == 2
    told = capsys.readouterr().err
    assert "PyTorch sees no CUDA GPU here" in told
    assert "to rehearse it without a GPU: --device cpu" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("device", "seconds", "status", "words"),
    [("cuda:0", 60.0, "failed", "PyTorch sees no CUDA GPU"), ("cpu", 0.5, "out of time", "")],
)
def test_a_step_that_fails_or_takes_too_long_is_reported(
    script, tmp_path, device, seconds, status, words
):
    task = script.Task(device, device == "cpu", time.monotonic() + seconds)
    row = script.run_step("parity", task, tmp_path / "rows.jsonl")
    assert row["status"] == status
    assert words in row["last words"]
    assert row["found"] == []


def test_the_operator_that_a_compiler_gets_wrong_is_named(script, tmp_path):
    part = parts_of(stored(SMALL_FEW_STEP, tmp_path), (96, 128), lambda tensor: tensor)["fusion"]

    def spoils_pooling(module, inputs):
        pools = "avg_pool2d" in str(torch.export.export(module, inputs).graph)
        return lambda *given: module(*given) * (1.1 if pools else 1.0)

    first, *rows = script.differing(part, spoils_pooling, lambda: False)
    assert first["that differ"] == len(rows) > 0
    assert {row["operator"] for row in rows} == {"aten.avg_pool2d.default"}
    assert all(row["difference"] == pytest.approx(0.1, rel=0.01) for row in rows)

    def refuses(module, inputs):
        raise RuntimeError("no converter")

    first, *rows = script.differing(part, refuses, lambda: False)
    assert first["operators compared"] == len(rows) > 10
    assert {row["failed"] for row in rows} == {"RuntimeError: no converter"}
    late = next(script.differing(part, refuses, lambda: True))
    assert (late["operators compared"], late["no time for"]) == (0, len(rows))


def test_the_files_stay_small(script, tmp_path, capsys):
    timeline = [[index, 1, "kernel" * 10] for index in range(20_000)]
    found = [{"busy (%)": 80.0}, {"timeline": timeline}]
    step = {"status": "done", "seconds": 1.0, "found": found}
    script.report({"GPU": "one"}, {"profile": step}, tmp_path / "report")
    for ending in (".json", ".md"):
        assert (tmp_path / "report").with_suffix(ending).stat().st_size <= script.MOST_BYTES
    kept = json.loads((tmp_path / "report.json").read_text())["steps"]["profile"]["found"]
    assert kept[0] == {"busy (%)": 80.0}
