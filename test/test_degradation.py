import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.training import sheets
from magicfuse_ros.training.degradation import EFFECTS
from magicfuse_ros.training.degradation_mixes import (
    NIGHT,
    RECIPES,
    Degradation,
    Mix,
    Recipe,
    degrade,
    degrade_batch,
    named_recipe,
    sample_recipe,
)
from magicfuse_ros.training.jpeg import through_jpeg

names = st.sampled_from(sorted(EFFECTS))
seeds = st.integers(0, 2**32 - 1)
sizes = st.tuples(st.integers(8, 90), st.integers(8, 90))


def street(height=96, width=128):
    """A picture with sky, road, edges, texture and colour."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.empty((height, width, 3), np.uint8)
    image[..., 0] = 90 + 100 * (y < height * 0.4)
    image[..., 1] = 100 + 80 * (y < height * 0.4)
    image[..., 2] = np.where(y < height * 0.4, 220, 95)
    image[(x // 8 + y // 8) % 2 == 0] //= 2
    cv2.rectangle(image, (width // 3, height // 3), (width // 2, height - 5), (200, 40, 30), -1)
    return image


def error(a, b):
    return float(np.mean((a.astype(float) - b.astype(float)) ** 2))


def apply(name, strength, seed, image):
    recipe = Recipe(name, (Degradation(name, strength),))
    return degrade(image, np.random.default_rng(seed), recipe)


@settings(deadline=None, max_examples=40)
@given(name=names, strength=st.floats(0, 1), seed=seeds, size=sizes)
def test_effect_keeps_shape_and_type_and_leaves_its_input(name, strength, seed, size):
    image = street(*size)
    before = image.copy()
    result = apply(name, strength, seed, image)
    assert result.shape == image.shape
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(image, before)


@settings(deadline=None, max_examples=40)
@given(name=names, strength=st.floats(0, 1), seed=seeds)
def test_same_seed_gives_the_same_image(name, strength, seed):
    image = street()
    np.testing.assert_array_equal(
        apply(name, strength, seed, image), apply(name, strength, seed, image)
    )


@pytest.mark.parametrize("name", sorted(set(EFFECTS) - {"jpeg", "low_contrast"}))
def test_another_seed_gives_another_image(name):
    assert error(apply(name, 0.8, 1, street()), apply(name, 0.8, 2, street())) > 0.5


# Green levels of a street under each effect, strength 0.8, seed 11, as OpenCV made them on numpy
# arrays before the effects became tensor operations: evaluation's seeded pictures stay.
ONCE = {
    "haze": [146, 131, 174, 173, 173, 147, 154, 153, 142, 120, 145, 139, 138, 105, 86, 87],
    "rain": [111, 111, 188, 188, 188, 68, 111, 111, 76, 70, 119, 120, 131, 68, 76, 76],
    "low_contrast": [104, 104, 153, 153, 153, 83, 104, 104, 83, 83, 109, 109, 109, 83, 83, 83],
    "motion_blur": [93, 93, 144, 180, 177, 40, 126, 90, 52, 40, 80, 100, 98, 40, 70, 50],
    "defocus_blur": [90, 90, 153, 180, 180, 40, 117, 90, 50, 40, 85, 100, 100, 40, 65, 50],
    "low_light": [31, 28, 75, 67, 76, 17, 32, 30, 20, 7, 42, 36, 35, 6, 10, 14],
    "noise": [81, 92, 215, 195, 170, 53, 98, 100, 42, 46, 87, 107, 67, 38, 53, 29],
    "jpeg": [90, 90, 181, 180, 194, 24, 97, 95, 50, 42, 102, 100, 100, 33, 50, 50],
}


@pytest.mark.parametrize("name", EFFECTS)
def test_the_same_random_numbers_give_the_picture_they_gave_with_opencv(name):
    picture = apply(name, 0.8, 11, street())
    now = picture[10::25, 10::35, 1].ravel().astype(int)
    assert np.abs(now - ONCE[name]).max() <= 1


@pytest.mark.parametrize("quality", [95, 75, 50, 30, 10])
@pytest.mark.parametrize("size", [(96, 128), (171, 243)])
def test_jpeg_is_libjpegs_but_where_a_coefficient_lies_between_two_steps(quality, size):
    image = apply("noise", 0.3, 1, street(*size))
    _, data = cv2.imencode(".jpg", image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, quality))
    expected = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB).astype(int)
    both = torch.from_numpy(image)[None].float().expand(2, -1, -1, -1)
    made = through_jpeg(both, np.array([quality, 100.0]))[0].numpy()
    difference = np.abs(made - expected)
    assert difference.mean() < 0.2
    assert np.mean(difference > 1) < 0.06


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_batch_on_a_device_gets_what_its_images_get_alone(device):
    """One image under several recipes, each with its own numbers; the numbers come from one rng."""
    images = torch.from_numpy(np.stack([street()] * 3)).float().to(device)
    for name in EFFECTS:
        recipe = Recipe(name, (Degradation(name, 0.7),))
        made = degrade_batch(images, np.random.default_rng(4), [recipe, Recipe("none"), recipe])
        alike = degrade_batch(images[:2], np.random.default_rng(4), [recipe, recipe]).cpu()
        assert made.device.type == device
        assert torch.equal(made[1].cpu(), images[1].cpu())
        assert float((made[[0, 2]].cpu() - alike).abs().max()) <= 1.0
        on_cpu = degrade_batch(images.cpu(), np.random.default_rng(4), [recipe] * 3)
        again = degrade_batch(images, np.random.default_rng(4), [recipe] * 3).cpu()
        assert float((on_cpu - again).abs().max()) <= 1.0
        one = degrade_batch(images[:1], np.random.default_rng(4), [recipe])[0].byte().cpu().numpy()
        assert np.abs(one.astype(int) - apply(name, 0.7, 4, street())).max() <= 1


@settings(deadline=None, max_examples=40)
@given(name=names, seed=seeds)
def test_strength_zero_is_the_identity_within_rounding(name, seed):
    image = street()
    result = apply(name, 0.0, seed, image)
    if name == "jpeg":  # halves the resolution of colour at any quality
        image, result = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (image, result))
    assert error(result, image) < 2.0


@settings(deadline=None, max_examples=40)
@given(name=names, seed=seeds, low=st.floats(0.0, 0.65))
def test_more_strength_is_farther_from_the_clean_image(name, seed, low):
    image = street()
    weak, strong = (error(apply(name, s, seed, image), image) for s in (low, low + 0.35))
    assert strong > weak


def test_low_light_darkens_and_adds_noise_that_shows_in_the_dark():
    flat = np.full((128, 128, 3), 140, np.uint8)
    dark = apply("low_light", 1.0, 3, flat)
    assert dark.mean() < 0.45 * flat.mean()
    assert dark[..., 1].std() / dark[..., 1].mean() > 0.02


def test_haze_pulls_the_far_towards_the_airlight_more_than_the_near():
    # Averaged over seeds: a single one may be all smoke, which has no far and near.
    image = np.zeros((120, 160, 3), np.uint8)
    image[:, ::2] = 200
    left = np.mean(
        [apply("haze", 0.7, seed, image).astype(float)[:, :, 1] for seed in range(12)], axis=0
    )
    contrast = np.abs(np.diff(left, axis=1)).mean(axis=1)
    assert contrast[:30].mean() < 0.75 * contrast[-30:].mean()


def test_noise_has_the_documented_deviation():
    flat = np.full((200, 200, 3), 128, np.uint8)
    deviation = [apply("noise", 1.0, seed, flat).astype(float).std() for seed in range(20)]
    assert min(deviation) > 15.0
    assert max(deviation) < 55.0


def test_motion_blur_is_directed_and_defocus_is_not():
    point = np.zeros((41, 41, 3), np.uint8)
    point[20, 20] = 255

    def spread(image):
        y, x = np.nonzero(image[..., 0])
        return np.linalg.eigvalsh(np.cov(np.stack((x, y)), aweights=image[y, x, 0]))

    small, large = spread(apply("motion_blur", 1.0, 5, point))
    assert large > 4.0 * small
    small, large = spread(apply("defocus_blur", 1.0, 5, point))
    assert large == pytest.approx(small, rel=0.05)


@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(RECIPES), seed=seeds, night=st.booleans())
def test_recipes_are_deterministic_and_valid(name, seed, night):
    recipes = [named_recipe(name, np.random.default_rng(seed), night=night) for _ in range(2)]
    assert recipes[0] == recipes[1]
    images = [degrade(street(), np.random.default_rng(seed), recipe) for recipe in recipes]
    np.testing.assert_array_equal(*images)
    assert images[0].shape == street().shape


def test_recipe_none_gives_a_copy():
    image = street()
    result = degrade(image, np.random.default_rng(0), Recipe("none"))
    np.testing.assert_array_equal(result, image)
    assert not np.shares_memory(result, image)


def test_steps_are_applied_in_the_order_of_light_however_they_are_listed():
    steps = (Degradation("noise", 0.5), Degradation("haze", 0.5), Degradation("low_light", 0.5))
    a = degrade(street(), np.random.default_rng(7), Recipe("a", steps))
    b = degrade(street(), np.random.default_rng(7), Recipe("b", steps[::-1]))
    np.testing.assert_array_equal(a, b)


def test_mix_is_mostly_dark_hazy_noisy_with_some_clean_and_at_most_three_at_once():
    rng = np.random.default_rng(0)
    recipes = [sample_recipe(rng) for _ in range(4000)]
    effects = [{step.effect for step in recipe.steps} for recipe in recipes]
    share = {name: np.mean([name in e for e in effects]) for name in EFFECTS}
    assert max(len(e) for e in effects) == 3
    assert np.mean([not e for e in effects]) == pytest.approx(Mix().none, abs=0.02)
    for main in ("low_light", "haze", "noise"):
        assert share[main] > 0.25
    for rare in ("rain", "motion_blur", "defocus_blur", "low_contrast"):
        assert share[rare] < 0.2
    assert any(e >= {"low_light", "noise"} for e in effects)


def test_night_frames_get_milder_recipes():
    strengths = {}
    for night in (False, True):
        rng = np.random.default_rng(0)
        recipes = [sample_recipe(rng, night=night) for _ in range(500)]
        strengths[night] = np.mean([s.strength for r in recipes for s in r.steps])
    assert strengths[True] == pytest.approx(strengths[False] * NIGHT, rel=0.01)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Degradation("fog", 0.5), "degradation is 'fog'; accepted: haze, "),
        (lambda: Degradation("haze", 1.5), "haze.strength is 1.5; accepted: 0 to 1"),
        (
            lambda: named_recipe("dusk", np.random.default_rng(0)),
            "recipe is 'dusk'; accepted: none, ",
        ),
        (lambda: Mix(haze=-1.0), "mix is .*accepted: weights of 0 or more"),
    ],
)
def test_errors_name_the_value_and_what_is_accepted(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


def test_sheet_command_writes_every_effect_at_three_strengths(tmp_path):
    cv2.imwrite(str(tmp_path / "street.png"), street(480, 640))
    assert sheets.main([str(tmp_path / "street.png"), str(tmp_path / "sheet.png")]) == 0
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape == (240 * (len(EFFECTS) + 1), 320 * 4, 3)


def test_sheet_command_says_when_the_picture_is_unreadable(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        sheets.main([str(tmp_path / "none.png"), str(tmp_path / "sheet.png")])
    assert stopped.value.code == 2
    assert "none.png cannot be read: No such file" in capsys.readouterr().err


def test_sheet_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(OSError, match="cannot write"):
        sheets.write_sheet(tmp_path / "missing" / "sheet.png", street())
