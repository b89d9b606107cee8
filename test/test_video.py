"""Temporal consistency and how it is measured, on scenes whose motion is known."""

import itertools

import cv2
import numpy as np
import pytest
import torch

from magicfuse_ros.evaluation.motion import flicker, ghosting, motion
from magicfuse_ros.evaluation.scenes import Video
from magicfuse_ros.evaluation.video import degraded
from magicfuse_ros.model.temporal import Memory

SHIFT = 3


@pytest.fixture(scope="module")
def scene():
    """Five frames of a texture that moves to the left."""
    texture = np.random.default_rng(0).integers(0, 256, (120, 200, 3), np.uint8)
    texture = cv2.normalize(cv2.GaussianBlur(texture, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)
    return tuple(np.ascontiguousarray(texture[:, SHIFT * t :][:, :160]) for t in range(5))


@pytest.fixture(scope="module")
def motions(scene):
    return [motion(*pair) for pair in itertools.pairwise(scene)]


def noisy(scene, sigma):
    rng = np.random.default_rng(1)
    return [
        np.clip(one + rng.normal(0.0, sigma, one.shape), 0, 255).astype(np.uint8) for one in scene
    ]


def blended(scene, weight):
    shown = [scene[0].astype(float)]
    for image in scene[1:]:
        shown.append((1.0 - weight) * image + weight * shown[-1])
    return [one.round().astype(np.uint8) for one in shown]


def test_the_motion_of_a_moving_texture_is_found(scene, motions):
    x = np.arange(20, 140)
    for one in motions:
        assert np.abs(one.source[20:100, 20:140, 0] - (x + SHIFT)).max() < 0.5
        assert one.moved[20:100, 20:140].all()
        assert one.visible[20:100, 20:140].mean() > 0.95
        assert not one.visible[:, 158:].any()  # it was outside the picture


def test_flicker_is_that_of_the_noise_and_not_of_the_motion(scene, motions):
    still = flicker(scene, motions)
    levels = [flicker(noisy(scene, sigma), motions) for sigma in (2.0, 5.0, 10.0)]
    assert still < 1.0
    assert still < levels[0] < levels[1] < levels[2]
    # The difference of two noises; bilinear warping smooths one of them.
    assert 0.7 * 10.0 < levels[2] < 1.13 * 10.0


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.7, 1.0])
def test_ghosting_is_the_share_of_the_picture_before(scene, motions, weight):
    shown, alone = blended(scene, weight), blended(scene, 0.0)
    assert ghosting(shown, alone, scene, motions) == pytest.approx(weight, abs=0.01)


def test_noise_that_is_averaged_away_is_no_ghost(scene, motions):
    alone = noisy(scene, 10.0)
    calmer = [
        ((one.astype(int) + clean) // 2).astype(np.uint8)
        for one, clean in zip(alone, scene, strict=True)
    ]
    assert ghosting(calmer, alone, scene, motions) == pytest.approx(0.0, abs=0.03)


@pytest.mark.parametrize("condition", ["noise", "night"])
def test_a_video_is_degraded_alike_with_noise_of_each_frames_own(scene, condition):
    video = Video("clip", clean=True, night=False, frames=(scene[0],) * 4)
    frames = degraded(video, condition)
    brightness = [frame.mean(axis=(0, 1)) for frame in frames]
    assert np.abs(np.diff(brightness, axis=0)).max() < 2.0
    assert all(np.abs(b.astype(int) - a).mean() > 1.0 for a, b in itertools.pairwise(frames))
    assert all(
        np.array_equal(*pair) for pair in zip(frames, degraded(video, condition), strict=True)
    )


# --- what is carried over -----------------------------------------------------------------------


def latent(seed=0):
    """A smooth scene, (1, 8, 60, 80) in about [-0.5, 0.5]."""
    coarse = torch.rand((1, 8, 6, 8), generator=torch.Generator().manual_seed(seed)) - 0.5
    return torch.nn.functional.interpolate(coarse, (60, 80), mode="bilinear")


def test_what_moved_is_new_and_what_did_not_is_kept():
    still, moved = latent(), latent()
    moved[..., 20:30, 20:30] += 0.5
    memory = Memory()
    assert torch.equal(memory.carry(still, 0.8)[0], still)
    shown, _ = memory.carry(moved + 0.01, 0.8)
    kept = (moved + 0.01 - shown) / (moved + 0.01 - still)
    assert kept[..., 40:, 40:].mean() == pytest.approx(0.8, abs=0.05)
    assert kept[..., 22:28, 22:28].abs().max() < 0.01


@pytest.mark.parametrize(
    "other",
    [latent(seed=1), -latent(), latent()[..., :40, :]],
    ids=["cut", "negative", "size"],
)
def test_another_scene_or_size_has_nothing_before_it(other):
    memory = Memory()
    memory.carry(latent(), 0.9)
    assert torch.equal(memory.carry(other, 0.9)[0], other)
    assert not torch.equal(memory.carry(other + 0.01, 0.9)[0], other + 0.01)  # the stream goes on


def test_values_that_are_not_finite_do_not_stay():
    memory = Memory()
    memory.carry(latent(), 0.9)
    memory.carry(latent() * torch.nan, 0.9)
    assert torch.equal(memory.carry(latent(), 0.9)[0], latent())
    memory.forget()
    assert torch.equal(memory.carry(latent(1), 0.9)[0], latent(1))


def test_maps_are_carried_over_where_the_latent_did_not_move():
    still, moved = latent(), latent()
    moved[..., 20:40, 60:] += 0.5
    maps = torch.zeros(1, 7, 240, 320)
    memory = Memory()
    memory.carry(still, 0.8, maps)
    _, shown = memory.carry(moved, 0.8, maps + 1.0)
    assert shown[..., :220].mean() == pytest.approx(0.2, abs=0.01)
    assert shown[..., 88:152, 250:].mean() == pytest.approx(1.0, abs=0.01)


# --- a steady light -----------------------------------------------------------------------------


def shown_lights(lights, latents=None, image=None):
    """Mean light of restored pictures that are this much lighter than their frames."""
    memory, image = Memory(), torch.full((1, 3, 8, 8), 0.4) if image is None else image
    latent = torch.rand(1, 8, 12, 16, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
    latents = [latent] * len(lights) if latents is None else latents
    return [
        float(memory.steady(one, image, image + light).mean()) - float(image.mean())
        for one, light in zip(latents, lights, strict=True)
    ]


def test_the_light_of_what_is_restored_changes_slowly():
    shown = np.array(shown_lights([0.1, -0.1] * 10))
    assert shown[0] == pytest.approx(0.1)
    assert np.abs(np.diff(shown)).max() < 0.03  # by itself each differs by 0.2
    settled = shown_lights([0.1] + [0.3] * 60)
    assert settled[1] == pytest.approx(0.12)
    assert settled[-1] == pytest.approx(0.3, abs=0.01)


def test_each_colour_has_a_light_of_its_own_and_no_detail_is_lost():
    memory, image = Memory(), torch.rand(1, 3, 8, 8) * 0.2 + 0.4
    latent = torch.rand(1, 8, 12, 16)
    memory.steady(latent, image, image)
    red = torch.tensor([0.1, 0.0, 0.0]).view(1, 3, 1, 1)
    shown = memory.steady(latent, image, image + red)
    torch.testing.assert_close(shown, image + 0.1 * red)


def test_another_scene_another_size_and_what_is_not_finite_have_their_own_light():
    draw = torch.Generator().manual_seed(1)
    first, second = (torch.rand(1, 8, 12, 16, generator=draw) * 2.0 - 1.0 for _ in range(2))
    for other in (second, first[..., :8], torch.full_like(first, float("nan"))):
        assert shown_lights([0.0, 0.3], [first, other])[1] == pytest.approx(0.3)
    memory = Memory()
    image = torch.full((1, 3, 8, 8), 0.4)
    memory.steady(first, image, image)
    memory.forget()
    assert torch.equal(memory.steady(first, image, image + 0.25), image + 0.25)
