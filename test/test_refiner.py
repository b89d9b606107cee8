"""R: pictures that follow from the frame, at any camera's size."""

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
from magicfuse_ros.model.refiner import (
    Maps,
    Refiner,
    enhanced,
    enlarged,
    exposed,
    infrared,
    lifted,
    luminance,
    split_maps,
)
from magicfuse_ros.runtime.camera_size import CameraPictures
from magicfuse_ros.runtime.contract import EXTRAS, EngineError, EngineSettings
from magicfuse_ros.runtime.engine import FuseEngine
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


def flat_maps(size=(24, 32), **values):
    """Maps that are the same everywhere; without values the restored picture is the frame."""
    own = {"gain": 1.0, "offset": 0.0, "infrared_gain": 0.0, "infrared_offset": 0.0, "heat": 0.0}
    channels = {"offset": 3}
    return Maps(**{
        name: torch.full((1, channels.get(name, 1), *size), values.get(name, value))
        for name, value in own.items()
    })  # fmt: skip


# --- the network --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(48, 64), (40, 72), (8, 8)])
def test_maps_have_the_images_size_and_logits_half_of_it(size):
    model = MagicFuse.from_config(SMALL_REFINED)
    fill(model.refiner)
    latent = torch.rand(2, 8, size[0] // 4, size[1] // 4)
    state = torch.rand(2, 12, *latent.shape[-2:])
    maps, logits = model.refiner(torch.rand(2, 3, *size), latent, latent, latent, state)
    assert maps.shape == (2, 7, *size)
    assert logits.shape == (2, 12, size[0] // 2, size[1] // 2)
    named = split_maps(maps)
    assert [each.shape[1] for each in named] == [1, 3, 1, 1, 1]
    assert 0.0 <= float(named.heat.min()) <= float(named.heat.max()) <= 1.0
    assert float(named.gain.min()) >= 0.0


def test_a_new_one_shows_what_the_latents_show_with_the_frames_detail():
    model = MagicFuse.from_config(SMALL_REFINED)
    model.refiner.begin_with(model.decoder)
    image, latent = torch.rand(1, 3, 48, 64), torch.rand(1, 8, 12, 16) * 2.0 - 1.0
    state = torch.rand(1, 12, 12, 16)
    with torch.no_grad():
        maps, logits = model.refiner(image, latent, -latent, latent, state)
        decoded = functional.pixel_shuffle(model.decoder.linear((latent + 1.0) / 2.0), 4)
    named = split_maps(maps)
    kept = torch.sigmoid(torch.tensor(-3.0))
    wanted = torch.lerp(decoded, image, kept)
    torch.testing.assert_close(enhanced(named).applied(image), wanted, rtol=0.0, atol=1e-5)
    assert bool((named.gain == 1.0).all())
    torch.testing.assert_close(logits, functional.interpolate(state, (24, 32), mode="bilinear"))


def test_a_decoder_without_a_linear_path_is_refused():
    autoencoder = dataclasses.replace(SMALL_FEW_STEP.autoencoder, linear_path=False)
    model = MagicFuse.from_config(dataclasses.replace(SMALL_REFINED, autoencoder=autoencoder))
    with pytest.raises(ValueError, match="linear path"):
        model.refiner.begin_with(model.decoder)


@pytest.mark.parametrize(
    "wrong",
    [{"widths": ()}, {"widths": (8, 8)}, {"widths": (0,), "blocks": (1,)}, {"fine_width": 0}],
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


def test_the_infrared_has_no_grid_of_the_latents_patches():
    model = MagicFuse.from_config(SMALL_REFINED)
    model.refiner.begin_with(model.decoder)
    latent = torch.rand(1, 8, 12, 16, generator=torch.Generator().manual_seed(2)) * 2.0 - 1.0
    with torch.no_grad():
        image, state = torch.rand(1, 3, 48, 64), torch.rand(1, 12, 12, 16)
        maps, _ = model.refiner(image, latent, latent, latent, state)
    steps = split_maps(maps).infrared_offset.diff(dim=-1).abs().mean(dim=(0, 1, 2))
    inside = torch.tensor([k % 4 != 3 for k in range(len(steps))])
    # A step between two patches is as small as one inside of them.
    assert float(steps[~inside].mean()) < 1.2 * float(steps[inside].mean())


# --- pictures from maps -------------------------------------------------------------------------


def test_heat_adds_light_and_keeps_the_order_of_what_it_lights():
    frame = torch.linspace(0.0, 1.0, 32).expand(1, 3, 24, 32)
    cold, hot = (lifted(flat_maps(heat=heat)).applied(frame) for heat in (0.0, 1.0))
    torch.testing.assert_close(cold, frame)
    assert bool((hot >= cold).all())
    assert bool((hot.diff(dim=-1) > 0.0).all())
    assert float(hot.max()) <= 1.0
    assert float((hot - cold)[..., 0].min()) > 0.5  # what is dark and warm is seen
    unsure = lifted(flat_maps(heat=0.3)).applied(frame)
    torch.testing.assert_close(unsure, frame)


def test_a_dark_picture_is_shown_as_a_longer_exposure_and_a_light_one_is_not():
    dark = torch.full((1, 3, 24, 32), 0.1)
    dark[..., :4] = 0.95
    restored = enhanced(exposed(flat_maps(), dark)).applied(dark)
    assert float(restored[..., 16:].min()) > 0.2
    torch.testing.assert_close(restored[..., 0], dark[..., 0], rtol=0.0, atol=0.01)
    light = torch.full((1, 3, 24, 32), 0.4)
    torch.testing.assert_close(enhanced(exposed(flat_maps(), light)).applied(light), light)
    levels = torch.linspace(0.0, 1.0, 101)[:, None, None].expand(101, 3, 9).permute(1, 0, 2)[None]
    maps = flat_maps((101, 9))
    shown = enhanced(exposed(maps, levels * 0.3)).applied(levels * 0.3)
    assert bool((shown[0, 0].diff(dim=0) > 0.0).all())  # no tone overtakes a brighter one


@pytest.mark.parametrize(
    "camera", [(48, 64), (96, 128), (101, 77), (24, 32), (90, 160), (1, 1)], ids=str
)
def test_pictures_at_the_cameras_size_are_what_the_formula_says(camera):
    frame = picture(*camera)
    letterbox = Letterbox.fitting(camera, (64, 48), 8)
    image = to_input(frame, letterbox)
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 7, 3, 4, generator=generator)
    maps = functional.interpolate(coarse, letterbox.padded, mode="bilinear")
    made = CameraPictures(frame, maps, planes(image), letterbox)
    height, width = letterbox.content
    content = exposed(split_maps(maps[..., :height, :width]), planes(image)[..., :height, :width])
    kind = "area" if camera[0] < height else "bilinear"

    def expected(coefficients, source):
        big = [functional.interpolate(each, camera, mode=kind) for each in coefficients]
        return (big[0] * source + big[1]).mul(255.0).round().clamp(0.0, 255.0)[0]

    for name, coefficients, source in (
        ("magimg", lifted(content), planes(frame)),
        ("enhanced", enhanced(content), planes(frame)),
        ("infrared", infrared(content), luminance(planes(frame))),
    ):
        result = getattr(made, name)()
        assert result.dtype == np.uint8
        wanted = expected(coefficients, source).permute(1, 2, 0).numpy()
        difference = np.abs(result.reshape(wanted.shape).astype(int) - wanted)
        assert difference.max() <= 1.0, (name, difference.max())


def test_an_unchanged_picture_is_returned_exactly_at_any_size():
    for camera in ((480, 640), (53, 211)):
        frame = picture(*camera)
        letterbox = Letterbox.fitting(camera, (64, 48), 8)
        maps = torch.cat(list(flat_maps(letterbox.padded, heat=-30.0)), dim=1)
        made = CameraPictures(frame, maps, planes(to_input(frame, letterbox)), letterbox)
        assert np.array_equal(made.enhanced(), frame)
        assert np.array_equal(made.magimg(), frame)


def test_enlarging_maps_does_not_move_them():
    maps = torch.arange(8.0).expand(1, 1, 6, 8)
    big = enlarged(maps, (12, 16))
    torch.testing.assert_close(functional.avg_pool2d(big, 2)[..., 1:-1], maps[..., 1:-1])


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


def test_what_was_shown_before_stays_in_magimg_alone(model):
    rng = np.random.default_rng(3)
    first = picture(96, 128)
    second = np.clip(first + rng.normal(0.0, 4.0, first.shape), 0, 255).astype(np.uint8)
    settings = EngineSettings(backend="eager", device="cpu", temporal=0.8)
    engine = FuseEngine(model, settings, print)
    engine.fuse(first)
    after = engine.fuse(second, frozenset(EXTRAS))
    engine.forget()
    alone = engine.fuse(second, frozenset(EXTRAS))
    engine.close()
    assert not np.array_equal(after.magimg, alone.magimg)
    assert np.array_equal(after.enhanced, alone.enhanced)
    assert np.array_equal(after.infrared, alone.infrared)
    assert np.array_equal(after.mask, alone.mask)


def test_values_that_are_not_finite_are_an_error_and_no_picture(tmp_path):
    broken = stored(SMALL_REFINED, tmp_path)
    with torch.no_grad():
        broken.refiner.maps.bias.fill_(float("nan"))
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


def test_s_is_left_alone_where_it_is_not_asked_for():
    model = MagicFuse.from_config(SMALL_REFINED)
    stage = RefineStage(model, RefineLoss(state=0.0))
    assert set(stage.trained) == {"refiner"}
    assert not any(each.requires_grad for each in model.fusion.parameters())


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
    right = torch.full((1, 1, 8, 8), -5.0)
    right[:, :, :4] = 5.0
    assert float(stage._heat(right, batch)) < 0.02
    assert float(stage._heat(-right, batch)) > 3.0
    # Nobody knows how warm a person is whose infrared was not recorded.
    unseen = batch | {"has_infrared": torch.zeros(1)}
    everywhere = torch.cat([torch.full((1, 1, 4, 8), 0.0), torch.full((1, 1, 4, 8), -5.0)], dim=2)
    assert float(stage._heat(everywhere, unseen)) < 0.02
