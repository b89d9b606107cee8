"""Training with two processes on one machine, as torchrun starts them."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.training_runs import ROOT, data_folder, run_folder, start, write_recipe

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def reports(folder):
    """First word of a report -> what each of the two processes reported."""
    data, config = data_folder(folder / "data"), write_recipe(folder, "psi")
    run_folder(folder / "run")
    script = ROOT / "test" / "support" / "two_ranks.py"
    process = start(*TORCHRUN, script, folder, data, config)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    found = {}
    for line in output.splitlines():
        words = line.split()
        if words and words[0] in {"signal", "nan", "train"}:
            found.setdefault(words[0], {})[words[1]] = words[2:]
    assert all(each.keys() == {"0", "1"} for each in found.values()), output
    return found


@pytest.mark.parametrize(
    ("event", "ending", "step"), [("signal", "stopped", "6"), ("nan", "error", "5")]
)
def test_all_processes_end_at_the_same_step_when_one_has_a_reason(reports, event, ending, step):
    first, second = reports[event].values()
    assert first == second  # the same number of steps, the same weights
    assert first[:3] == [ending, "7", step]


def test_two_processes_train_a_stage_together(reports, folder):
    assert reports["train"] == {"0": ["0"], "1": ["0"]}
    trained = load_file(folder / "run" / "model" / "psi.safetensors")
    assert all(bool(torch.isfinite(value).all()) for value in trained.values())
    with safe_open(folder / "run" / "psi.state.safetensors", "pt") as file:
        assert file.metadata()["step"] == "4"
        for name, value in trained.items():
            assert torch.equal(value, file.get_tensor(f"average/module.psi.{name}"))
    # One process writes.
    assert len(list((folder / "run" / "logs" / "psi").iterdir())) == 1
    assert not list(folder.rglob("*.partial"))
