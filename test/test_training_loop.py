"""The training loop on a line fit: its batches, its schedule, its checkpoints and its stops."""

import os
import signal
from itertools import pairwise

import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.curves import curve
from support.training_runs import Line, LineStage, Points, on_one_thread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from magicfuse_ros.model.checkpoint import CheckpointError
from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.training.loop import LoopConfig, TrainingError, _Loop, run
from magicfuse_ros.training.optimization import make_average, make_optimizer
from magicfuse_ros.training.state import Checkpointed, read_state

STATE = "line.state.safetensors"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    yield from on_one_thread()


def config(**options):
    return LoopConfig(**{"steps": 60, "batch": 4, "learning_rate": 0.1, "ema": 0.9, **options})


def fit(folder, stage=None, dataset=None, **options):
    """Train a line; returns the stage and whether it is complete."""
    stage = stage or LineStage()
    return stage, run(stage, dataset or Points(), config(**options), folder, "line")


def saved(folder):
    """Tensors and metadata of the checkpoint."""
    with safe_open(folder / STATE, "pt") as file:
        return load_file(folder / STATE), file.metadata()


def same(folder, other):
    (tensors, metadata), (others, other_metadata) = saved(folder), saved(other)
    assert tensors.keys() == others.keys()
    unequal = [key for key in tensors if not torch.equal(tensors[key], others[key])]
    del metadata["seconds"], other_metadata["seconds"]
    return not unequal and metadata == other_metadata


def terminate(loss):
    os.kill(os.getpid(), signal.SIGTERM)
    return loss


def test_it_learns_and_leaves_what_is_frozen_alone(tmp_path):
    stage = LineStage()
    before = {key: value.clone() for key, value in stage.frozen["helper"].state_dict().items()}
    assert fit(tmp_path, stage, steps=120)[1]
    line = stage.trained["line"]
    assert line.a.item() == pytest.approx(3.0, abs=0.3)
    assert line.b.item() == pytest.approx(-1.0, abs=0.2)
    after = stage.frozen["helper"].state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not any("helper" in key for key in saved(tmp_path)[0])
    assert all(not parameter.requires_grad for parameter in stage.frozen["helper"].parameters())
    steps, losses = zip(*curve(tmp_path, "line"), strict=True)
    assert steps == (20, 40, 60, 80, 100, 120)
    assert losses[-1] < losses[0] / 3


def test_what_is_exported_is_the_average_of_the_weights(tmp_path):
    stage, _ = fit(tmp_path, steps=30)
    tensors, _ = saved(tmp_path)
    assert stage.trained["line"].a.item() == float(tensors["average/module.line.a"])
    assert stage.trained["line"].a.item() != float(tensors["trained/line.a"])


def test_average_forgets_the_first_weights_soon():
    module = torch.nn.Linear(1, 1)
    average = make_average(config(ema=0.999), module)
    expected = None
    for n in range(30):
        torch.nn.init.constant_(module.weight, float(n))
        average.update_parameters(module)
        decay = (1 + n) / (10 + n)  # below 0.999 for long
        expected = float(n) if n == 0 else decay * expected + (1 - decay) * n
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)
    assert expected > 15.0


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({}, {0: 0.1, 59: 0.1}),
        ({"warmup_steps": 10}, {0: 0.01, 4: 0.05, 9: 0.1, 40: 0.1}),
        ({"decay": "cosine"}, {0: 0.1, 30: 0.0505, 60: 0.001}),
        ({"decay": "halve", "halve_every": 10}, {9: 0.1, 10: 0.05, 25: 0.025}),
    ],
)
def test_learning_rate(options, rates):
    for step, rate in rates.items():
        assert config(**options).rate_at(step) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)],
)
def test_optimizers_take_their_settings(name, kind):
    optimizer = make_optimizer(
        config(optimizer=name, weight_decay=0.02, momentum=0.8), torch.nn.Linear(1, 1)
    )
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.02)
    assert name != "sgd" or group["momentum"] == 0.8


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("steps", 0), ("batch", 0), ("sheet_every", 0), ("learning_rate", 0.0),
        ("learning_rate", float("nan")), ("ema", 1.0), ("checkpoint_minutes", -1),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(option, value):
    with pytest.raises(ConfigError, match=rf"loop\.{option} is {value}"):
        config(**{option: value})


def test_halving_needs_its_period():
    with pytest.raises(ConfigError, match=r"loop\.halve_every is 0"):
        config(decay="halve")


@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd", "decay": "cosine"}])
def test_stopped_and_resumed_is_as_never_stopped(tmp_path, options):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    dataset = Points()
    reference, _ = fit(whole, dataset=dataset, **options)
    previous = signal.getsignal(signal.SIGTERM)
    asked = []
    for calls, step in ((28, 27), (15, 41)):  # the step whose loss was just seen is not taken
        resumed = Points()
        _, complete = fit(parts, LineStage({calls: terminate}), resumed, **options)
        assert not complete
        assert saved(parts)[1]["step"] == str(step)
        asked += resumed.asked[:-2]  # of the step that was not taken, and the one after it
        assert signal.getsignal(signal.SIGTERM) is previous
    resumed = Points()
    stage, complete = fit(parts, dataset=resumed, **options)
    assert complete
    assert asked + resumed.asked == dataset.asked
    assert same(whole, parts)
    assert curve(whole, "line") == curve(parts, "line")
    for mine, other in zip(stage.trained.parameters(), reference.trained.parameters(), strict=True):
        assert torch.equal(mine, other)


class Clock:
    """Seconds that pass by the number of steps: one a step."""

    def __init__(self, stage):
        self._stage = stage

    def __call__(self):
        return float(self._stage.calls)


def by_the_clock(monkeypatch, folder, at=None, minutes=1.0):
    stage = LineStage(at)
    monkeypatch.setattr("magicfuse_ros.training.loop._now", Clock(stage))
    options = config(steps=1, decay="cosine", checkpoint_minutes=0.1)
    exported = []
    complete = run(stage, Points(), options, folder, "line", exported.append, minutes=minutes)
    return stage, complete, len(exported)


def test_by_the_clock_the_rate_falls_to_the_end_of_the_minutes(tmp_path, monkeypatch, capsys):
    stage, complete, exported = by_the_clock(monkeypatch, tmp_path)
    assert complete
    assert stage.calls == 60  # and not one, the recipe's steps
    assert exported == 9  # every six seconds, and at the end
    said = capsys.readouterr().out
    assert "line: 10% of its time, step 6, loss" in said
    assert "line: 100% of its time, step 60, loss" in said
    assert (tmp_path / "sheets" / "line.jpg").is_file()
    rates = [config(decay="cosine").rate_at(5, passed) for passed in (0.0, 0.5, 1.0, 2.0)]
    assert rates == pytest.approx([0.1, 0.0505, 0.001, 0.001])


def test_stopped_and_resumed_by_the_clock_is_as_never_stopped(tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    by_the_clock(monkeypatch, whole)
    for calls in (21, 23):
        _, complete, _ = by_the_clock(monkeypatch, parts, {calls: terminate})
        assert not complete
    _, complete, _ = by_the_clock(monkeypatch, parts)
    assert complete
    assert same(whole, parts)
    assert curve(whole, "line") == curve(parts, "line")
    assert saved(parts)[1]["seconds"] == "60.0"


def test_sixteen_bits_are_those_of_the_recipe(tmp_path):
    seen = []

    def look(loss):
        half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
        # Weights that were cast without a gradient must not be taken again with one.
        seen.append((half, half and torch.is_autocast_cache_enabled()))
        return loss

    for precision in ("float32", "bfloat16"):  # one after the other, as stages may differ
        fit(tmp_path / precision, LineStage({1: look}), steps=2, precision=precision)
    assert seen == [(False, False), (torch.bfloat16, False)]


@pytest.mark.parametrize("fails", [False, True])
def test_networks_are_compiled_or_it_is_said_why_not(tmp_path, monkeypatch, capsys, fails):
    """With torch's compiler on the CPU in the place of a GPU's."""
    asked = []

    def compiled(network):
        asked.append(type(network).__name__)
        broken = RuntimeError("no compiler\nis here")

        def call(*args):
            if fails:
                raise broken
            return network.forward(*args)

        network._compiled_call_impl = call

    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    stage = LineStage()
    loop = _Loop(Accelerator(cpu=True), stage, config(), tmp_path, "line", None, None)
    loop._compile(stage, Points().batch(0, 4))
    assert asked == ["Line", "Linear"]
    said = capsys.readouterr().out
    assert ("line: trains without torch.compile, which failed: no compiler" in said) == fails
    assert (stage.trained["line"]._compiled_call_impl is None) == fails
    assert stage(Points().batch(0, 4), torch.Generator())[0] > 0.0


def test_a_complete_stage_takes_no_further_step(tmp_path):
    fit(tmp_path)
    before = (tmp_path / STATE).read_bytes()
    stage, complete = fit(tmp_path)
    assert complete
    assert stage.calls == 0
    assert (tmp_path / STATE).read_bytes() == before
    assert stage.trained["line"].a.item() == float(saved(tmp_path)[0]["average/module.line.a"])


def test_weights_are_exported_before_the_checkpoint_that_says_so_and_only_once(tmp_path):
    exported = []

    def export(trained):
        written = (tmp_path / STATE).is_file() and saved(tmp_path)[1]["step"]
        exported.append((trained["line"].a.item(), written))

    def train(stage):
        run(stage, Points(), config(steps=30), tmp_path, "line", export)
        return float(saved(tmp_path)[0]["average/module.line.a"])

    half, whole = train(LineStage({16: terminate})), train(LineStage())
    assert exported == [(half, False), (whole, "15")]
    train(LineStage())
    assert len(exported) == 2


def test_a_signal_in_the_last_step_changes_nothing(tmp_path):
    assert fit(tmp_path, LineStage({60: terminate}))[1] is False
    assert fit(tmp_path)[1] is True
    whole = tmp_path / "whole"
    fit(whole)
    assert same(tmp_path, whole)


def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    stage = LineStage({31: lambda loss: loss * float("nan")})
    with pytest.raises(TrainingError, match=r"line: the loss is nan at step 30.*learning_rate"):
        fit(tmp_path, stage, checkpoint_minutes=0.0)
    tensors, metadata = saved(tmp_path)
    assert metadata["step"] == "29"
    assert all(bool(torch.isfinite(value).all()) for value in tensors.values())
    assert fit(tmp_path)[1]


def test_a_gradient_that_is_not_finite_stops_before_it_spoils_the_weights(tmp_path):
    # sqrt has an infinite slope at 0, and 0 · inf is NaN: a fine loss with a bad gradient.
    stage = LineStage({31: lambda loss: loss + (0.0 * loss).sqrt()})
    with pytest.raises(TrainingError, match="the gradient's norm is nan at step 30"):
        fit(tmp_path, stage, checkpoint_minutes=0.0)
    assert saved(tmp_path)[1]["step"] == "30"
    assert all(bool(torch.isfinite(p).all()) for p in stage.trained.parameters())


def test_divergence_stops_and_keeps_what_was_saved_before_it(tmp_path):
    stage = LineStage({call: lambda loss: 1e4 + loss for call in range(41, 200)})
    with pytest.raises(TrainingError, match=r"more than 10 times its lowest mean.* at step 89"):
        fit(tmp_path, stage, steps=200, checkpoint_minutes=0.0)
    assert saved(tmp_path)[1]["step"] == "39"


def test_a_run_of_bad_batches_is_no_divergence(tmp_path):
    stage = LineStage({call: lambda loss: 1e4 * loss for call in range(30, 60)})
    assert fit(tmp_path, stage, steps=70)[1]


def test_divergence_before_the_first_checkpoint_says_so(tmp_path):
    stage = LineStage({5: lambda loss: loss * float("inf")})
    with pytest.raises(TrainingError, match="there is no checkpoint yet"):
        fit(tmp_path, stage)
    assert not (tmp_path / STATE).exists()


def damaged(kind, path):
    content = path.read_bytes()
    if kind == "cut short":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "no checkpoint":
        save_file({"a": torch.zeros(1)}, path)


@pytest.mark.parametrize("kind", ["cut short", "empty", "no checkpoint"])
def test_a_damaged_checkpoint_is_one_clear_error(tmp_path, kind):
    fit(tmp_path)
    damaged(kind, tmp_path / STATE)
    with pytest.raises(CheckpointError) as raised:
        fit(tmp_path, steps=80)
    message = str(raised.value)
    assert message.startswith(f"checkpoint {tmp_path / STATE} does not fit this stage")
    assert "remove it to start the stage again" in message
    assert "\n" not in message


def test_a_checkpoint_of_another_stage_is_an_error(tmp_path):
    fit(tmp_path)
    module = torch.nn.ModuleDict({"line": Line(), "more": torch.nn.Linear(1, 1)})
    parts = Checkpointed(module, make_average(config(), module), make_optimizer(config(), module))
    with pytest.raises(CheckpointError, match="restore the config"):
        read_state(tmp_path / STATE, parts)


def test_a_kill_while_writing_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    fit(tmp_path)
    before = (tmp_path / STATE).read_bytes()

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("magicfuse_ros.training.state.Path.replace", die)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, steps=80)
    assert (tmp_path / STATE).read_bytes() == before


def test_speed_and_waiting_for_data_are_logged(tmp_path):
    fit(tmp_path)
    events = EventAccumulator(str(tmp_path / "logs" / "line"))
    events.Reload()
    assert all(event.value > 0.0 for event in events.Scalars("data/samples_per_second"))
    assert all(0.0 < event.value < 1.0 for event in events.Scalars("data/share_waiting"))
    slopes = [event.value for event in events.Scalars("slope")]
    assert all(later > earlier for earlier, later in pairwise(slopes))


def test_sheets_are_drawn(tmp_path):
    fit(tmp_path, sheet_every=25)
    events = EventAccumulator(str(tmp_path / "logs" / "line"))
    events.Reload()
    assert [event.step for event in events.Images("sheet")] == [25, 50]
