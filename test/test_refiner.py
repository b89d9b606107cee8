"""R, and pictures that follow from the frame, at any camera's size."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from support.small_models import SMALL_FEW_STEP, SMALL_REFINED, fill, stored
from torch.nn import functional

from magicfuse_ros.model.config import MagicFuseConfig, RefinerConfig
from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.refiner import Refiner, enlarged, split_maps
from magicfuse_ros.runtime.camera_size import CameraPictures, detail_variance, noise_level
from magicfuse_ros.runtime.contract import EXTRAS, EngineError, EngineSettings
from magicfuse_ros.runtime.engine import FuseEngine
from magicfuse_ros.runtime.guided_picture import LIFT, SURE, Coefficients, exposed, lit, sharpened
from magicfuse_ros.runtime.letterbox import Letterbox, to_input
from magicfuse_ros.training.refine import RefineLoss, RefineStage


def picture(height, width, seed=0):
    """A scene of smooth shapes and sharp edges, (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 220, (5, 6, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for x in range(0, width, 9):
        image[:, x : x + 2] //= 2
    return image


def planes(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255.0


def floats(image):
    return image.astype(np.float32) / np.float32(255.0)


def plane(value, size=(24, 32)):
    return np.full(size, value, np.float32)


UNCHANGED = Coefficients(plane(1.0), np.zeros((24, 32, 3), np.float32))


# --- the network --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(48, 64), (40, 72), (8, 8)])
def test_what_it_finds_has_half_of_the_images_size(size):
    model = MagicFuse.from_config(SMALL_REFINED)
    fill(model.refiner)
    latent = torch.rand(2, 8, size[0] // 4, size[1] // 4)
    state = torch.rand(2, 12, *latent.shape[-2:])
    with torch.no_grad():
        maps, logits = model.refiner(torch.rand(2, 3, *size), latent, latent, latent, state)
    assert maps.shape == (2, 3, size[0] // 2, size[1] // 2)
    assert logits.shape == (2, 12, size[0] // 2, size[1] // 2)
    heat = split_maps(maps).heat
    assert 0.0 <= float(heat.min()) <= float(heat.max()) <= 1.0


def new_maps():
    torch.manual_seed(0)
    model = MagicFuse.from_config(SMALL_REFINED)
    model.refiner.begin_with(model.decoder)
    draw = torch.Generator().manual_seed(2)
    coarse = torch.rand(1, 8, 12, 16, generator=draw) * 2.0 - 1.0
    latent = enlarged(coarse, (48, 64))
    image, state = torch.rand(1, 3, 192, 256), torch.rand(1, 12, 48, 64)
    with torch.no_grad():
        maps, logits = model.refiner(image, latent, latent, latent, state)
        decoded = model.decoder.linear((latent + 1.0) / 2.0)
    assert torch.equal(logits, 0.5 * enlarged(state, (96, 128)))
    return split_maps(maps), decoded


def test_a_new_one_shows_what_phis_latent_shows_no_heat_and_the_classes_of_s():
    maps, decoded = new_maps()
    assert bool((maps.infrared_gain == 0.0).all())
    assert float(maps.heat.max()) < 0.05
    wanted = functional.avg_pool2d(decoded.mean(dim=1, keepdim=True), 3, 1)
    inside = functional.avg_pool2d(maps.infrared_offset, 2)[..., 1:-1, 1:-1]
    assert float(torch.corrcoef(torch.stack([inside.flatten(), wanted.flatten()]))[0, 1]) > 0.9


def test_its_infrared_has_no_grid_of_the_latents_patches():
    shown = enlarged(new_maps()[0].infrared_offset, (192, 256))
    steps = shown.diff(dim=-1).abs().mean(dim=(0, 1, 2))
    inside = torch.tensor([k % 4 != 3 for k in range(len(steps))])
    # A step between two patches is as small as one inside of them.
    assert float(steps[~inside].mean()) < 1.2 * float(steps[inside].mean())


def test_a_decoder_without_a_linear_path_is_refused():
    autoencoder = dataclasses.replace(SMALL_FEW_STEP.autoencoder, linear_path=False)
    model = MagicFuse.from_config(dataclasses.replace(SMALL_REFINED, autoencoder=autoencoder))
    with pytest.raises(ValueError, match="linear path"):
        model.refiner.begin_with(model.decoder)


@pytest.mark.parametrize(
    "wrong",
    [
        {"widths": ()},
        {"labels": "fmb"},
        {"widths": (8, 8, 8, 8)},
        {"widths": (0,)},
        {"head_width": 0},
    ],
)
def test_a_wrong_config_is_refused(wrong):
    with pytest.raises(ConfigError, match="refiner"):
        RefinerConfig(**wrong)


def test_a_model_with_and_one_without_survive_their_folders(tmp_path):
    for config in (SMALL_REFINED, SMALL_FEW_STEP):
        assert MagicFuseConfig.from_dict(config.to_dict()) == config
        model = stored(config, tmp_path / config.name)
        assert isinstance(model.refiner, Refiner) == (config is SMALL_REFINED)
        assert (tmp_path / config.name / "small" / "refiner.safetensors").is_file() == (
            config is SMALL_REFINED
        )


def test_enlarging_maps_does_not_move_them():
    maps = torch.arange(8.0).expand(1, 1, 6, 8)
    big = enlarged(maps, (12, 16))
    torch.testing.assert_close(functional.avg_pool2d(big, 2)[..., 1:-1], maps[..., 1:-1])


# --- how a picture follows from the frame -------------------------------------------------------


def test_a_frame_that_is_hardly_changed_is_left_alone_unless_it_is_noisy():
    image = floats(picture(24, 32))
    restored = np.clip(image + 0.01, 0.0, 1.0)
    left = sharpened(image, restored, plane(1e-3), noise=0.002)
    assert np.array_equal(left.gain, plane(1.0))
    assert np.abs(left.offset).max() < 1e-6
    noisy = sharpened(image, restored, plane(1e-3), noise=0.05)
    assert float(noisy.gain.max()) < 0.1  # a variance of 0.05² is all noise
    np.testing.assert_allclose(noisy.applied(image), restored, atol=1e-5)


def test_a_restored_picture_takes_its_detail_from_the_frame():
    image = floats(picture(24, 32)) * np.float32(0.4)
    restored = image * np.float32(2.0)
    found = sharpened(image, restored, plane(1e-2), noise=0.0)
    np.testing.assert_allclose(found.applied(image), restored, atol=1e-5)
    strong = found.gain[cv2.blur(image[..., 0] ** 2, (5, 5)) > 0.01]
    assert 1.5 < float(np.median(strong)) <= 2.05


def test_heat_adds_light_and_keeps_the_order_of_what_it_lights():
    levels = np.tile(np.linspace(0.0, 1.0, 32, dtype=np.float32)[:, None], (24, 1, 3))
    cold, unsure, hot = (lit(UNCHANGED, plane(heat), levels) for heat in (0.0, SURE[0], 1.0))
    assert np.array_equal(cold.applied(levels), levels)
    assert np.array_equal(unsure.applied(levels), levels)
    shown = hot.applied(levels)
    assert (shown >= levels).all()
    assert (np.diff(shown[:, :, 0], axis=1)[:, 3:-3] > 0.0).all()
    assert float((shown - levels)[:, 0].min()) > 0.8 * LIFT  # what is dark and warm is seen


def test_a_dark_picture_is_shown_as_a_longer_exposure_and_a_light_one_is_not():
    dark = np.full((24, 32, 3), 0.1, np.float32)
    dark[:, :6] = 0.95
    shown = exposed(UNCHANGED, dark).applied(dark)
    assert float(shown[:, 16:].min()) > 0.2
    np.testing.assert_allclose(shown[:, 0], dark[:, 0], atol=0.01)
    light = np.full((24, 32, 3), 0.4, np.float32)
    assert exposed(UNCHANGED, light) is UNCHANGED
    levels = np.tile(np.linspace(0.0, 0.3, 101, dtype=np.float32)[:, None, None], (1, 9, 3))
    unchanged = Coefficients(plane(1.0, (101, 9)), np.zeros((101, 9, 3), np.float32))
    shown = exposed(unchanged, levels).applied(levels)
    assert (np.diff(shown[:, 0, 0]) > 0.0).all()  # no tone overtakes a brighter one


@pytest.mark.parametrize("sigma", [0.0, 4.0, 15.0])
def test_noise_is_told_and_edges_are_not_taken_for_it(sigma):
    rng = np.random.default_rng(1)
    smooth = picture(240, 320)[..., 0].astype(np.float64)
    noisy = np.clip(smooth + rng.normal(0.0, sigma, smooth.shape), 0, 255).astype(np.uint8)
    assert noise_level(noisy) * 255.0 == pytest.approx(sigma, abs=0.5 + 0.15 * sigma)
    assert noise_level(np.zeros((2, 5), np.uint8)) == 0.0


def test_the_variance_inside_a_pixel_is_that_of_what_it_covers():
    grey = np.zeros((8, 8), np.uint8)
    grey[::2] = 255
    np.testing.assert_allclose(detail_variance(grey, (4, 4)), 0.25)
    assert not detail_variance(np.full((8, 8), 90, np.uint8), (4, 4)).max() > 1e-6
    assert not detail_variance(np.full((4, 4), 90, np.uint8), (8, 8)).max() > 1e-6


# --- at the camera's size -----------------------------------------------------------------------

CAMERAS = [(48, 64), (96, 128), (101, 77), (24, 32), (90, 160), (1, 1)]


def made_of(frame, restored=None):
    letterbox = Letterbox.fitting(frame.shape[:2], (64, 48), 8)
    image = planes(to_input(frame, letterbox))
    return CameraPictures(frame, image, image if restored is None else restored(image), letterbox)


@pytest.mark.parametrize("camera", CAMERAS, ids=str)
def test_a_good_frame_is_returned_exactly_at_any_size(camera):
    frame = picture(*camera)
    made = made_of(frame)
    cold = torch.zeros(1, 3, 96, 96)
    assert made.enhanced().shape == frame.shape
    if camera != (1, 1):  # whose one pixel is dark, and shown brighter
        assert np.array_equal(made.enhanced(), frame)
        assert np.array_equal(made.magimg(cold), frame)


@pytest.mark.parametrize("camera", CAMERAS[:3], ids=str)
def test_pictures_are_what_the_formula_says(camera):
    frame = picture(*camera)
    made = made_of(frame, lambda image: (image * 0.5 + 0.3).clamp(0.0, 1.0))
    gain, offset = made._picture
    big = [
        cv2.resize(each, camera[::-1], interpolation=cv2.INTER_LINEAR) for each in (gain, offset)
    ]
    wanted = np.clip(np.rint(big[0][..., None] * frame + 255.0 * big[1]), 0, 255)
    assert np.abs(made.enhanced().astype(int) - wanted).max() <= 1
    maps = torch.zeros(1, 3, *made._letterbox.padded)
    maps[:, 1] = 0.4
    decoded = torch.full((1, 3, *made._letterbox.padded), 0.6)
    assert np.abs(made.infrared(maps, decoded).astype(int) - 127.5).max() <= 1.0


# --- the engine ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return stored(SMALL_REFINED, tmp_path_factory.mktemp("refined"))


def run(model, frame, **settings):
    engine = FuseEngine(model, EngineSettings(backend="eager", device="cpu", **settings), print)
    try:
        return engine.fuse(frame, frozenset(EXTRAS))
    finally:
        engine.close()


def test_the_engine_shows_what_r_makes_and_the_papers_fusion_where_it_is_asked_for(model):
    frame = picture(96, 128)
    refined, paper = run(model, frame), run(model, frame, paper_fusion=True)
    without = dataclasses.replace(SMALL_REFINED, refiner=None)
    plain = MagicFuse(without, model.labels)
    for part in plain.parts:
        setattr(plain, part, getattr(model, part))
    decoded = run(plain.eval(), frame)
    assert np.array_equal(paper.magimg, decoded.magimg)
    assert np.array_equal(paper.mask, decoded.mask)
    assert not np.array_equal(refined.magimg, paper.magimg)
    for result in (refined, paper):
        assert result.magimg.shape == result.enhanced.shape == frame.shape
        assert result.mask.shape == result.infrared.shape == frame.shape[:2]


def test_masks_come_in_the_classes_of_another_set_that_r_knows_and_nothing_else_changes(model):
    frame = picture(96, 128)
    with torch.no_grad():
        model.refiner.more_classes["mfnet"].outputs.bias.copy_(torch.arange(9.0) == 5)
    own, nine = run(model, frame), run(model, frame, labels="mfnet")
    assert set(np.unique(nine.mask)) == {5}
    assert len(np.unique(own.mask)) > 1
    assert np.array_equal(own.magimg, nine.magimg)
    with pytest.raises(EngineError, match=r"labels: set 'mfnet' has 9 classes.*tells 12 apart"):
        run(model, frame, labels="mfnet", paper_fusion=True)
    with pytest.raises(EngineError, match=r"give 'mfnet', or a set with a label for each"):
        run(model, frame, labels="fmb")


def test_what_was_shown_before_stays_in_magimg_alone(model):
    rng = np.random.default_rng(3)
    first = picture(96, 128)
    second = np.clip(first + rng.normal(0.0, 4.0, first.shape), 0, 255).astype(np.uint8)
    settings = EngineSettings(backend="eager", device="cpu", temporal=0.8)
    engine = FuseEngine(model, settings, print)
    engine.fuse(first)
    after = engine.fuse(second, frozenset(EXTRAS))
    engine.update(steps=0, tau=None, seed=None, temporal=0.0)
    engine.fuse(first)
    steady = engine.fuse(second, frozenset(EXTRAS))
    engine.forget()
    alone = engine.fuse(second, frozenset(EXTRAS))
    engine.close()
    for other in (after, steady):
        assert np.array_equal(other.infrared, alone.infrared)
        assert np.array_equal(other.mask, alone.mask)
    assert not np.array_equal(after.magimg, steady.magimg)
    assert np.array_equal(after.enhanced, steady.enhanced)
    # In a steady light, one number a colour changes.
    change = steady.enhanced.astype(int) - alone.enhanced
    inside = (steady.enhanced > 0) & (steady.enhanced < 255)
    assert change.any()
    assert all(float(change[..., c][inside[..., c]].std()) < 1.0 for c in range(3))


def test_values_that_are_not_finite_are_an_error_and_no_picture(tmp_path):
    broken = stored(SMALL_REFINED, tmp_path)
    with torch.no_grad():
        broken.refiner.head.outputs.bias.fill_(float("nan"))
    with pytest.raises(EngineError, match="eager on cpu gave values that are not finite"):
        run(broken, picture(96, 128))


def test_the_engine_and_the_model_agree(model):
    from magicfuse_ros.evaluation.inference import Inference

    frame = picture(96, 128)
    made, plain = run(model, frame), Inference(model).fuse(frame)
    assert np.abs(made.magimg.astype(int) - plain.magimg).max() <= 1
    assert np.abs(made.enhanced.astype(int) - plain.enhanced).max() <= 1
    assert (made.mask == plain.mask).mean() > 0.999


# --- the stage ----------------------------------------------------------------------------------


def test_r_learns_classes_of_its_own_and_those_of_s_are_added_to_them():
    model = MagicFuse.from_config(SMALL_REFINED)
    stage = RefineStage(model, RefineLoss())
    fill(model.refiner.head)
    image, seen = torch.rand(2, 3, 32, 32), []
    model.refiner.register_forward_hook(lambda _, inputs, __: seen.append(inputs))
    with torch.no_grad():
        _, own = stage._refine(image, torch.Generator().manual_seed(0))
        (_, *latents, hidden), state = seen[0], torch.randn(2, 12, 8, 8)
        _, summed = model.refiner(image, *latents, state)
    assert not hidden.any()
    torch.testing.assert_close(summed, own + 0.5 * enlarged(state, (16, 16)))


def test_the_classes_of_another_set_are_learned_alone():
    model = MagicFuse.from_config(SMALL_REFINED)
    stage = RefineStage(model, RefineLoss(), "mfnet")
    learned = {name for name, each in model.refiner.named_parameters() if each.requires_grad}
    assert learned == {n for n, _ in model.refiner.named_parameters() if n.startswith("more_cl")}
    labels = torch.full((2, 32, 32), 5)
    batch = {
        "degraded": torch.rand(2, 3, 32, 32),
        "infrared": torch.zeros(2, 1, 32, 32),
        "labels": labels,
        "thermal_weight": torch.zeros(2, 32, 32),
        "annotated": torch.zeros(2),
    }
    loss, terms = stage(batch, torch.Generator().manual_seed(0))
    assert set(terms) == {"segmentation", "absence"}
    loss.backward()
    assert bool(model.refiner.more_classes["mfnet"].outputs.bias.grad.any())


def test_a_model_without_r_is_refused():
    with pytest.raises(ConfigError, match="no section `refiner`"):
        RefineStage(MagicFuse.from_config(SMALL_FEW_STEP), RefineLoss())


def test_heat_is_asked_for_where_something_known_is_warm_and_refused_where_nothing_is():
    stage = RefineStage(MagicFuse.from_config(SMALL_REFINED), RefineLoss())
    labels = torch.full((1, 8, 8), 4)  # road
    labels[:, :4] = 2  # person
    batch = {
        "labels": labels,
        "infrared": torch.full((1, 1, 8, 8), 0.9),
        "has_infrared": torch.ones(1),
        "annotated": torch.ones(1),
        "thermal_weight": torch.zeros(1, 8, 8),
    }
    right = torch.zeros(1, 1, 8, 8)
    right[:, :, :4] = 1.0
    assert float(stage._heat(right, batch)) < 0.02
    assert float(stage._heat(1.0 - right, batch)) > 3.0
    # Nobody knows how warm a person is whose infrared was not recorded.
    unseen = batch | {"has_infrared": torch.zeros(1)}
    assert float(stage._heat(0.5 * right, unseen)) < 0.02


def test_heat_is_warm_somebody_so_it_is_none_where_the_classes_show_nobody():
    model = MagicFuse.from_config(SMALL_REFINED)
    latent, state = torch.zeros(1, 8, 8, 8), torch.zeros(1, 12, 8, 8)
    state[:, 4], state[:, 2, :, 4:] = 18.0, 36.0  # road, and a person on the right
    with torch.no_grad():
        model.refiner.head.outputs.bias[2] = 9.0  # all is warm
        maps, _ = model.refiner(torch.rand(1, 3, 32, 32), latent, latent, latent, state)
    heat = split_maps(maps).heat[0, 0]
    assert float(heat[:, :6].max()) < 0.01
    assert float(heat[:, 10:].min()) > 0.99
