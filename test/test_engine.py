"""The engine: any frame in, results of its size out; settings, errors, backends."""

import dataclasses
import itertools
import threading

import numpy as np
import pytest
import torch
import yaml
from support.pictures import pictures_of
from support.small_models import SMALL_FEW_STEP, SMALL_PAPER, save_few_step

from magicfuse_ros.model.checkpoint import PARTS
from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.refiner import enlarged
from magicfuse_ros.model.sampler import SamplerSettings
from magicfuse_ros.runtime import backends, networks_by_size
from magicfuse_ros.runtime.backends import candidates
from magicfuse_ros.runtime.backends.eager import EagerBackend
from magicfuse_ros.runtime.engine import EXTRAS, EngineError, EngineSettings, load_engine
from magicfuse_ros.runtime.networks import CompiledNetworks
from magicfuse_ros.runtime.stopwatch import STAGES

LABELS = LabelSet.load(SMALL_FEW_STEP.labels)
ALL = frozenset(EXTRAS)


def ignore(text):
    pass


@pytest.fixture(autouse=True)
def only_eager(monkeypatch):
    """Leave the compiled backends to test_backends."""
    monkeypatch.setattr(backends, "BACKENDS", {"eager": EagerBackend})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_few_step(tmp_path_factory.mktemp("models"))


@pytest.fixture
def load(folder):
    engines = []

    def load(**settings):
        engines.append(
            load_engine(
                EngineSettings(**{"model": str(folder), "device": "cpu", **settings}), ignore
            )
        )
        return engines[-1]

    yield load
    for made in engines:
        made.close()


def street(height=96, width=128, seed=0):
    """A picture with structure: gradients and blocks, and some noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    frame = np.stack([rows * 200 // height, columns * 200 // width, (rows + columns) % 200], -1)
    frame[height // 3 : height // 2, width // 4 : width // 2] = (250, 240, 10)
    return (frame + rng.integers(0, 6, frame.shape)).astype(np.uint8)


def same(first, second):
    arrays = ("magimg", "mask", "confidence", "infrared", "enhanced")
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in arrays)


# --- frames in, results out ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [(48, 64), (480, 640), (64, 48), (1, 1), (1, 700), (700, 1), (37, 53), (2, 3), (90, 91)]
)
def test_results_have_the_size_of_the_frame_whatever_it_is(load, size):
    result = load().fuse(street(*size), ALL)

    for name, shape in {
        "magimg": (*size, 3),
        "enhanced": (*size, 3),
        "infrared": size,
        "mask": size,
        "confidence": size,
    }.items():
        array = getattr(result, name)
        assert array.shape == shape, name
        assert array.dtype == np.uint8
        assert array.flags.c_contiguous
        assert array.flags.writeable
    assert result.mask.max() < len(LABELS)
    assert set(result.stage_ms) == set(STAGES)
    assert min(result.stage_ms.values()) >= 0


def test_extras_are_made_only_when_asked_for(load):
    fuse = load().fuse
    plain = fuse(street())
    assert plain.infrared is None
    assert plain.enhanced is None
    one = fuse(street(), frozenset({"infrared"}))
    assert one.infrared is not None
    assert one.enhanced is None
    assert np.array_equal(plain.magimg, one.magimg)


@pytest.mark.parametrize("config", [SMALL_FEW_STEP, SMALL_PAPER], ids=lambda one: one.name)
def test_the_engine_gives_what_the_model_gives(load, tmp_path, config):
    torch.manual_seed(0)
    model = MagicFuse.from_config(config).eval()
    with torch.no_grad():
        model.fusion.segproj[-1].weight.mul_(30.0)  # random weights tell no class from another
    model.save_pretrained(tmp_path / "model")
    frame = street(48, 64)
    result = load(model=str(tmp_path / "model"), seed=3, steps=2).fuse(frame, ALL)

    generator = torch.Generator().manual_seed(3)
    noise = model.draw_noise(48, 64, generator)
    encoder_noise = model.draw_encoder_noise(48, 64, generator)
    image = torch.from_numpy(frame).permute(2, 0, 1)[None] / 255
    settings = SamplerSettings.of(config, model.labels.thermal_ids(), steps=2)
    with torch.inference_mode():
        pictures = pictures_of(model, image, noise, settings, encoder_noise)

    for name in ("magimg", "enhanced"):
        expected = getattr(pictures, name)[0].permute(1, 2, 0).numpy() * 255
        assert np.abs(getattr(result, name) - expected).max() < 1.0, name
    infrared = pictures.infrared[0].mean(dim=0).numpy() * 255
    assert np.abs(result.infrared - infrared).max() < 1.0
    probabilities = enlarged(pictures.step.state.softmax(dim=1), (48, 64))[0]
    first, second = probabilities.topk(2, dim=0).values
    leads = (first - second > 0.02).numpy()
    assert leads.mean() > 0.3
    assert (result.mask == probabilities.argmax(dim=0).numpy())[leads].mean() > 0.99
    assert np.abs(result.confidence / 255 - first.numpy()).mean() < 0.02


def test_the_same_frame_gives_the_same_result_in_every_engine(load):
    first, second = load(), load()
    result = first.fuse(street(), ALL)
    first.fuse(street(seed=1))
    assert same(result, first.fuse(street(), ALL))
    assert same(result, second.fuse(street(), ALL))


def test_the_seed_changes_the_noise_and_nothing_else(load):
    made = load(seed=1)
    one = made.fuse(street(), ALL)
    made.update(steps=0, tau=None, seed=2, temporal=None)
    two = made.fuse(street(), ALL)
    made.update(steps=0, tau=None, seed=1, temporal=None)
    assert not np.array_equal(one.magimg, two.magimg)
    assert same(one, made.fuse(street(), ALL))


def test_views_are_taken_and_not_changed(load):
    made = load()
    whole = street(96, 256)
    view = whole[::-1, ::2, ::-1]
    view.flags.writeable = False
    before = whole.copy()
    assert same(made.fuse(view, ALL), made.fuse(np.ascontiguousarray(view), ALL))
    assert np.array_equal(whole, before)


def test_results_belong_to_the_caller(load):
    made = load()
    frame = street(48, 64)
    result = made.fuse(frame, ALL)
    kept = result.magimg.copy()
    made.fuse(street(48, 64, seed=9), ALL)
    assert np.array_equal(result.magimg, kept)
    assert not np.shares_memory(result.magimg, frame)


@pytest.mark.parametrize(
    ("frame", "extras", "text"),
    [
        (np.zeros((4, 4), np.uint8), frozenset(), r"shape \(4, 4\); accepted: uint8 of shape"),
        (np.zeros((4, 4, 4), np.uint8), frozenset(), "accepted: uint8 of shape"),
        (np.zeros((4, 4, 3), np.float32), frozenset(), "frame is float32"),
        (np.zeros((0, 4, 3), np.uint8), frozenset(), "1x1 or larger"),
        (np.zeros((4, 4, 3), np.uint8), frozenset({"depth"}), "accepted: infrared, enhanced"),
    ],
)
def test_what_is_no_frame_is_refused(load, frame, extras, text):
    with pytest.raises(ValueError, match=text):
        load().fuse(frame, extras)


def test_a_camera_that_changes_its_size_is_followed_and_memory_bounded(load):
    made = load()
    frames = [(48, 64), (40, 64), (32, 64), (24, 64), (16, 64), (64, 48), (48, 64)]
    results = [made.fuse(street(*size), ALL) for size in frames]
    assert same(results[0], results[-1])
    assert len(made._networks._ready) == 1
    made.close()


def test_sizes_that_come_and_go_are_kept_together(load):
    """As of two cameras in one bag: each is made a few times, and then no more."""
    told = []
    made = load_engine(load().settings, told.append)
    for _ in range(6):
        for size in ((48, 64), (32, 64)):
            made.fuse(street(*size))
    for size in ((48, 64), (32, 64)):
        times = told.count(f"preparing psi for {size[1]}x{size[0]}")
        assert 1 < times <= networks_by_size.MAKES_BEFORE_KEEPING
    assert len(made._networks._ready) == 2
    made.close()


def test_a_closed_engine_says_so(load):
    made = load()
    made.fuse(street())
    made.close()
    with pytest.raises(EngineError, match="closed; load another"):
        made.fuse(street())


def test_warming_up_tells_what_it_does(load):
    told = []
    load().warm_up(told.append)
    assert "'small-few-step' at 64x48, eager on cpu" in told[0]
    for part in PARTS:
        assert any(part in text for text in told)
    assert "ready" in told[-1]


# --- settings -----------------------------------------------------------------------------------


def test_steps_tau_and_seed_are_the_models_unless_set(load):
    own = load().fuse(street(), ALL)
    spelled_out = load(steps=2, tau=0.4, seed=0).fuse(street(), ALL)
    assert same(own, spelled_out)
    assert not np.array_equal(own.magimg, load(steps=3).fuse(street()).magimg)


def test_live_settings_equal_those_given_at_the_start(load):
    made = load()
    made.fuse(street())
    made.update(steps=4, tau=0.0, seed=7, temporal=None)
    assert (made.settings.steps, made.settings.tau, made.settings.seed) == (4, 0.0, 7)
    assert same(made.fuse(street(), ALL), load(steps=4, tau=0.0, seed=7).fuse(street(), ALL))
    made.update(steps=0, tau=None, seed=None, temporal=None)
    assert same(made.fuse(street(), ALL), load().fuse(street(), ALL))


@pytest.mark.parametrize(
    "bad", [{"steps": 1001}, {"steps": -1}, {"tau": 1.1}, {"seed": -1}, {"temporal": 0.91}]
)
def test_a_live_setting_out_of_range_leaves_what_was(load, bad):
    made = load(steps=1, tau=0.3, seed=5)
    before = made.fuse(street(), ALL)
    with pytest.raises(EngineError, match="accepted"):
        made.update(**{"steps": 0, "tau": None, "seed": None, "temporal": None, **bad})
    assert (made.settings.steps, made.settings.tau, made.settings.seed) == (1, 0.3, 5)
    assert same(before, made.fuse(street(), ALL))


def test_settings_may_change_while_a_frame_is_fused(load):
    made = load(seed=0)
    expected = {seed: load(seed=seed).fuse(street(), ALL) for seed in (0, 1)}
    stop = threading.Event()

    def change():
        seed = 0
        while not stop.wait(0.001):
            seed = 1 - seed
            made.update(steps=0, tau=None, seed=seed, temporal=None)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        results = [made.fuse(street(), ALL) for _ in range(20)]
    finally:
        stop.set()
        changer.join()
    assert all(any(same(result, one) for one in expected.values()) for result in results)


# --- temporal -----------------------------------------------------------------------------------


def test_a_frame_of_too_many_steps_begins_anew_when_fewer_are_asked_for(load):
    expected = load(steps=2).fuse(street())
    made = load()
    networks = CompiledNetworks.denoise
    taken = []

    def denoise(self, condition, z_psi, z_phi, t):
        taken.append(t)
        if len(taken) == 5:
            made.update(steps=2, tau=None, seed=None, temporal=None)
        return networks(self, condition, z_psi, z_phi, t)

    made.update(steps=900, tau=None, seed=None, temporal=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompiledNetworks, "denoise", denoise)
        assert same(made.fuse(street()), expected)
    assert len(taken) == 5 + 2


def test_a_frame_is_expected_to_take_as_long_as_its_steps_and_a_warm_up_takes_few(load):
    made = load(steps=900)
    made.warm_up(ignore)
    per_900 = made.expected_frame_s
    made.update(steps=0, tau=None, seed=None, temporal=None)
    own = made._sampling.in_force.steps
    assert made.expected_frame_s == made.first_frame_s > 0.0
    assert per_900 == pytest.approx(made.first_frame_s * 900 / own)


def changes(results):
    pictures = [result.magimg.astype(int) for result in results]
    return [np.abs(b - a).mean() for a, b in itertools.pairwise(pictures)]


def test_temporal_calms_the_magimg_of_a_still_scene_and_nothing_else(load):
    frames = [street(seed=seed) for seed in range(4)]
    alone, made = load(), load(temporal=0.9)
    made.warm_up(ignore)  # its frame is not part of the stream
    off, on = ([one.fuse(frame, ALL) for frame in frames] for one in (alone, made))

    assert same(off[0], on[0])
    assert np.mean(changes(on)) < 0.7 * np.mean(changes(off))
    for first, second in zip(off, on, strict=True):
        assert same(first, dataclasses.replace(second, magimg=first.magimg))

    made.forget()
    assert all(same(a, made.fuse(frame, ALL)) for a, frame in zip(on, frames, strict=True))
    small = street(48, 64)
    assert same(made.fuse(small, ALL), alone.fuse(small, ALL))  # another camera, the same networks
    made.update(steps=0, tau=None, seed=None, temporal=None)
    assert all(same(a, made.fuse(frame, ALL)) for a, frame in zip(off, frames, strict=True))


def test_another_resolution_gives_other_detail_and_the_same_size(load):
    small, large = load(), load(resolution=(100, 76))
    assert large.fuse(street()).magimg.shape == small.fuse(street()).magimg.shape
    assert not np.array_equal(large.fuse(street()).magimg, small.fuse(street()).magimg)


def test_a_label_set_of_ones_own_names_the_same_classes(load, tmp_path):
    labels = [
        {"name": f"class {index}", "color": [index, 0, 0], "thermal": False}
        for index in range(len(LABELS))
    ]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "labels": labels}))
    made = load(labels=str(path), tau=0.0)
    assert made.labels.names()[3] == "class 3"
    # Without a thermal class, Eq. 11 changes nothing, whatever tau is.
    assert same(made.fuse(street(), ALL), load(labels=str(path), tau=1.0).fuse(street(), ALL))


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"model": "no-such-model"}, "no model folder .*no-such-model"),
        ({"model": "/no/such/folder"}, "no model folder /no/such/folder"),
        ({"model": ""}, "accepted: the name or folder of a model"),
        ({"backend": "magic"}, "backend is 'magic'; accepted: auto, .*eager"),
        ({"device": "tpu"}, "device is 'tpu'; accepted: auto, cpu, cuda"),
        ({"device": "cuda:"}, "accepted: auto, cpu, cuda"),
        ({"device": "cuda:x"}, "accepted: auto, cpu, cuda"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"steps": 1001}, "steps is 1001; accepted: 1 to 1000"),
        ({"steps": -3}, "steps is -3; accepted"),
        ({"tau": 1.5}, "tau is 1.5; accepted: 0.0 to 1.0"),
        ({"tau": float("nan")}, "tau is nan; accepted"),
        ({"seed": -2}, "seed is -2; accepted"),
        ({"temporal": 1.0}, "temporal is 1.0; accepted: 0.0 to 0.9"),
        ({"temporal": float("nan")}, "temporal is nan; accepted"),
        ({"threads": -1}, "threads is -1; accepted"),
        ({"resolution": (2, 2)}, "resolution is 2x2; accepted: sides of at least 8"),
        ({"resolution": (0, 64)}, "resolution is .0, 64.; accepted"),
        ({"labels": "martian"}, "unknown label set 'martian'; accepted: cityscapes, drive"),
        ({"labels": "mfnet"}, "has 9 classes, but model 'small-few-step' tells 12 apart"),
        ({"labels": "/no/such.yaml"}, "cannot be read"),
    ],
)
def test_what_cannot_be_had_is_told_in_one_line(load, settings, text):
    with pytest.raises(EngineError, match=text) as error:
        load(**settings)
    assert "\n" not in str(error.value)


def test_cuda_is_refused_where_there_is_none(load, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="PyTorch sees no CUDA GPU here; set device to auto"):
        load(device="cuda")


@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_weights_file_is_named(part, folder, load, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights = copy / f"{part}.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(EngineError, match=rf"{part}\.safetensors is corrupt"):
        load(model=str(copy))
    weights.unlink()
    with pytest.raises(EngineError, match=rf"{part}\.safetensors is missing"):
        load(model=str(copy))


def test_weights_of_another_model_are_refused(folder, load, tmp_path):
    copy = tmp_path / "copy"
    MagicFuse.from_config(dataclasses.replace(SMALL_FEW_STEP, labels="mfnet")).save_pretrained(copy)
    fusion = copy / "fusion.safetensors"
    fusion.write_bytes((folder / fusion.name).read_bytes())
    with pytest.raises(EngineError, match=r"cannot be loaded: .*fusion.*: tensor 'segproj.* has"):
        load(model=str(copy))


def test_weights_that_change_after_the_load_are_never_mixed_with_it(load, tmp_path):
    copy = tmp_path / "copy"
    torch.manual_seed(1)
    MagicFuse.from_config(SMALL_FEW_STEP).save_pretrained(copy)
    made, untouched = load(model=str(copy)), load(model=str(copy))
    made.fuse(street())
    torch.manual_seed(2)
    MagicFuse.from_config(SMALL_FEW_STEP).save_pretrained(copy)
    tall = street(128, 96)  # another size: its networks are made now
    assert same(made.fuse(tall, ALL), untouched.fuse(tall, ALL))
    assert not same(made.fuse(tall, ALL), load(model=str(copy)).fuse(tall, ALL))


def test_steps_that_the_model_was_not_trained_for_are_warned_of(load, tmp_path):
    copy = tmp_path / "copy"
    sampling = dataclasses.replace(SMALL_FEW_STEP.diffusion, trained_steps=(2, 3))
    config = dataclasses.replace(SMALL_FEW_STEP, trained=True, diffusion=sampling)
    MagicFuse.from_config(config).save_pretrained(copy)
    made = load(model=str(copy))
    assert made.steps_warning == ""
    made.update(steps=4, tau=None, seed=None, temporal=None)
    assert "was trained for 2 or 3 steps a picture, not for 4" in made.steps_warning
    made.update(steps=3, tau=None, seed=None, temporal=None)
    assert made.steps_warning == ""


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "x"}'])
def test_a_damaged_config_is_told_in_one_line(load, tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(EngineError, match=r"config\.json") as error:
        load(model=str(tmp_path))
    assert "\n" not in str(error.value)


# --- backends -----------------------------------------------------------------------------------


class Recorder(EagerBackend):
    """Runs like eager, and notes what it is asked."""

    made: list["Recorder"] = []  # noqa: RUF012 - emptied by the fixture

    def __init__(self, device, threads):
        super().__init__(device, threads)
        self.calls = []
        self.examples = {}
        self.closed = False
        Recorder.made.append(self)

    def compile(self, part, progress):
        self.examples[part.name] = [(one.shape, one.dtype) for one in part.inputs]
        assert not part.module.training
        network = super().compile(part, progress)

        def call(*inputs):
            self.calls.append(part.name)
            assert [(one.shape, one.dtype) for one in inputs] == self.examples[part.name]
            return self.answer(part.name, network, inputs)

        return call

    def answer(self, name, network, inputs):  # noqa: ARG002 - for those that derive from it
        return network(*inputs)

    def close(self):
        self.closed = True


@pytest.fixture
def backend(monkeypatch):
    """Puts a backend called `fast` before eager."""
    Recorder.made = []

    def add(kind):
        monkeypatch.setattr(backends, "BACKENDS", {"fast": kind, "eager": EagerBackend})

    return add


def test_each_part_is_compiled_once_and_called_with_the_one_shape_of_its_example(load, backend):
    backend(Recorder)
    made = load(steps=3)
    for size in [(96, 128), (48, 64)]:
        made.fuse(street(*size), ALL)
    (fast,) = Recorder.made
    assert set(fast.examples) == set(PARTS)
    steps = ["psi", "phi", "fusion"] * 3
    assert fast.calls == ["encoder", *steps, "decoder", "decoder", "decoder"] * 2
    assert made.backend_name == "fast on cpu"
    made.close()
    assert fast.closed


def test_threads_are_set_for_the_networks_and_not_for_the_caller(load, backend):
    seen = []

    class Counts(Recorder):
        def answer(self, name, network, inputs):
            seen.append(torch.get_num_threads())
            return super().answer(name, network, inputs)

    backend(Counts)
    made = load(threads=1)

    def work():
        torch.set_num_threads(2)
        made.fuse(street())
        seen.append(torch.get_num_threads())

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    assert set(seen[:-1]) == {1}
    assert seen[-1] == 2


class FailsAtFrames(Recorder):
    def answer(self, name, network, inputs):
        if self.calls.count("decoder") > 4:
            raise RuntimeError("the device\nwas lost")
        return super().answer(name, network, inputs)


def test_a_backend_that_raises_on_frames_is_left_for_the_next(load, backend):
    backend(FailsAtFrames)
    made = load()
    made.warm_up(ignore)
    result = made.fuse(street())
    with pytest.raises(RuntimeError, match="was lost"):
        made.fuse(street())

    assert made.fall_back(ignore) == "eager on cpu"
    assert made.backend_name == "eager on cpu"
    assert Recorder.made[0].closed
    assert same(made.fuse(street()), result)
    assert made.fall_back(ignore) is None
    assert same(made.fuse(street()), result)


class FailsToCompile(Recorder):
    def compile(self, part, progress):
        if part.name == "phi":
            raise NotImplementedError("no such\noperator")
        return super().compile(part, progress)


def test_a_backend_that_cannot_compile_is_left_while_warming_up(load, backend):
    backend(FailsToCompile)
    told = []
    made = load()
    assert made.first_frame_s == 0.0
    made.warm_up(told.append)
    assert made.first_frame_s > 0.0
    assert made.backend_name == "eager on cpu"
    assert "backend fast on cpu fails (no such operator); trying eager on cpu" in told
    assert Recorder.made[0].closed
    assert made.fuse(street()).magimg.shape == (96, 128, 3)


def test_without_another_backend_the_reason_is_told(load, monkeypatch):
    monkeypatch.setattr(backends, "BACKENDS", {"fast": FailsToCompile})
    with pytest.raises(EngineError, match="fast on cpu fails and there is no other: no such oper"):
        load().warm_up(ignore)


class GivesNan(Recorder):
    part = "decoder"

    def answer(self, name, network, inputs):
        result = super().answer(name, network, inputs)
        if name != self.part:
            return result
        if isinstance(result, tuple):
            return tuple(one * torch.nan for one in result)
        return result * torch.nan


@pytest.mark.parametrize("part", PARTS)
def test_values_that_are_not_finite_never_become_a_picture(load, backend, part):
    backend(type("GivesNan", (GivesNan,), {"part": part}))
    made = load()
    with pytest.raises(EngineError, match="fast on cpu gave values that are not finite"):
        made.fuse(street())
    made.warm_up(ignore)
    assert made.backend_name == "eager on cpu"


def test_a_load_that_is_stopped_is_no_fault_of_the_backend(load, backend):
    backend(Recorder)
    made = load()

    class Stopped(Exception):  # noqa: N818
        pass

    def stop(text):
        if "phi" in text:
            raise Stopped

    with pytest.raises(Stopped):
        made.warm_up(stop)
    assert made.backend_name == "fast on cpu"


class NotHere(Recorder):
    @staticmethod
    def unavailable():
        return "its library is not installed"


def test_auto_passes_over_what_is_not_available_and_says_so_once(folder, backend):
    backend(NotHere)
    told = []
    made = load_engine(EngineSettings(model=str(folder), device="cpu"), told.append)
    made.warm_up(told.append)
    assert made.backend_name == "eager on cpu"
    (line,) = [text for text in told if "library" in text]
    assert line == (
        "fast is faster than eager on cpu and is left out: its library is not installed"
    )


class ForGpus(NotHere):
    device_type = "cuda"


def test_what_is_for_another_device_is_not_missed(load, backend):
    backend(ForGpus)
    assert backends.missing("auto", "cpu") == []
    with pytest.raises(EngineError, match="'fast' cannot run on cpu: it is for cuda only"):
        load(backend="fast")


def test_a_backend_that_is_not_available_is_refused_by_name(load, backend):
    backend(NotHere)
    assert backends.missing("eager", "cpu") == []
    with pytest.raises(EngineError, match="'fast' cannot run on cpu: its library is not installed"):
        load(backend="fast")


def test_a_backend_asked_for_by_name_is_used(load, backend):
    backend(Recorder)
    assert load(backend="eager").backend_name == "eager on cpu"
    assert load(backend="fast").backend_name == "fast on cpu"


def test_the_order_of_what_to_try(backend, monkeypatch):
    backend(Recorder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def names(*arguments):
        return [str(candidate) for candidate in candidates(*arguments)]

    on_gpu, on_cpu = ["fast on cuda:0", "eager on cuda:0"], ["fast on cpu", "eager on cpu"]
    assert names("auto", "auto") == on_gpu + on_cpu
    assert names("eager", "auto") == ["eager on cuda:0", "eager on cpu"]
    assert names("auto", "cpu") == on_cpu
    assert names("fast", "cuda:1") == ["fast on cuda:1", "eager on cuda:1"]
    with pytest.raises(EngineError, match="2 CUDA GPUs"):
        names("auto", "cuda:2")


def test_eager_leaves_the_weights_on_the_cpu_when_it_runs_elsewhere(folder):
    encoder = MagicFuse.from_pretrained(folder).encoder
    elsewhere = EagerBackend(torch.device("meta"), 0)
    part = backends.Part("encoder", encoder, (torch.zeros(1, 3, 48, 64),))
    compiled = elsewhere.compile(part, ignore)
    assert {one.device.type for one in compiled.parameters()} == {"meta"}
    assert {one.device.type for one in encoder.parameters()} == {"cpu"}
    assert elsewhere.compile(part, ignore) is compiled
