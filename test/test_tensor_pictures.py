"""The pictures as tensor operations, for GPUs, give what OpenCV gives on the CPU."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magicfuse_ros.runtime.camera_size import CameraPictures, noise_level
from magicfuse_ros.runtime.letterbox import (
    Letterbox,
    classify,
    quantise,
    resize,
    to_camera,
    to_input,
    to_picture,
)
from magicfuse_ros.runtime.tensor_pictures import TensorPictures, _resizer

CPU = torch.device("cpu")
MODEL = (64, 48)
# Twice and four times the model's size, no multiple, smaller, portrait, a line, mixed.
CAMERAS = [(96, 128), (192, 256), (90, 160), (75, 101), (30, 40), (128, 96), (5, 200), (1, 1)]


def street(height, width, seed=0, *, dark=False):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 60 if dark else 256, (6, 8, 3), np.uint8)
    frame = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(int)
    return np.clip(frame + rng.integers(-6, 7, frame.shape), 0, 255).astype(np.uint8)


def smooth(letterbox, channels, seed=0):
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand((1, channels, 5, 7), generator=draw)
    return torch.nn.functional.interpolate(coarse, letterbox.padded, mode="bilinear")


def differs(ours, theirs):
    return np.abs(ours.numpy().astype(int) - theirs.astype(int))


side = st.integers(1, 40)


@settings(deadline=None, max_examples=150)
@given(old=st.tuples(side, side), new=st.tuples(side, side), soft=st.booleans())
def test_any_resizing_is_opencvs(old, new, soft):
    plane = np.random.default_rng(0).random(old, np.float32)
    ours = _resizer(old, new, CPU, smooth=soft)(torch.from_numpy(plane)[None, None])[0, 0]
    torch.testing.assert_close(
        ours, torch.from_numpy(resize(plane, new, smooth=soft)), rtol=0.0, atol=2e-4
    )


@pytest.mark.parametrize("camera", CAMERAS)
def test_the_models_input(camera):
    letterbox, frame = Letterbox.fitting(camera, MODEL, 16), street(*camera)
    ours = TensorPictures(letterbox, CPU).to_input(torch.from_numpy(frame))
    wanted = to_input(frame, letterbox)
    assert ours.shape == (1, 3, *letterbox.padded)
    apart = differs(ours[0].permute(1, 2, 0), wanted)
    assert apart.max() <= 1
    assert (apart > 0).mean() < 0.01


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("coarse", [1, 2, 4])
def test_mask_and_confidence(camera, coarse):
    letterbox = Letterbox.fitting(camera, MODEL, 16)
    logits = 8.0 * torch.nn.functional.avg_pool2d(smooth(letterbox, 12), coarse)
    ours = TensorPictures(letterbox, CPU).classes(logits)
    wanted = classify(quantise(logits[0].softmax(dim=0)).numpy(), letterbox)
    assert len(np.unique(wanted[0])) > 2 or min(camera) == 1
    # OpenCV rounds the last columns, which do not fill its vectors, in another way.
    few = 0.001 if min(camera) > 60 else 0.01
    assert (ours[0].numpy() != wanted[0]).mean() <= few
    assert differs(ours[1], wanted[1]).max() <= 2
    assert (differs(ours[1], wanted[1]) > 0).mean() <= (0.1 if min(camera) > 60 else 0.25)


@pytest.mark.parametrize("dark", [True, False])
@pytest.mark.parametrize("camera", CAMERAS)
def test_the_pictures_of_a_frame(camera, dark):
    letterbox, frame = Letterbox.fitting(camera, MODEL, 16), street(*camera, dark=dark)
    image = torch.from_numpy(to_input(frame, letterbox)).permute(2, 0, 1)[None] / 255.0
    for change in (0.02, 0.08, 0.2):  # hardly, somewhat, much
        restored = (image + change * smooth(letterbox, 3)).clamp(0.0, 1.0)
        decoded, maps = smooth(letterbox, 3, 1), smooth(letterbox, 3, 2)
        maps = torch.nn.functional.avg_pool2d(maps, 2)  # as R gives them
        theirs = CameraPictures(frame, image, restored, letterbox)
        ours, rgb = TensorPictures(letterbox, CPU), torch.from_numpy(frame)
        picture = ours.sharpened(rgb, image, restored)
        pairs = {
            "enhanced": (ours.at_camera(rgb, picture), theirs.enhanced()),
            "magimg": (
                ours.at_camera(rgb, ours.magimg(picture, image, maps)),
                theirs.magimg(maps),
            ),
            "infrared": (
                ours.at_camera(rgb, ours.infrared(maps, decoded)),
                theirs.infrared(maps, decoded),
            ),
            "decoded": (ours.enlarged(decoded), to_camera(to_picture(decoded), letterbox)),
            "grey": (
                ours.enlarged(decoded[:, :1]),
                to_camera(to_picture(decoded[:, :1]), letterbox),
            ),
        }
        for name, (one, other) in pairs.items():
            assert one.dtype == torch.uint8
            assert one.shape == other.shape, name
            assert differs(one, other).max() <= 1, name


@pytest.mark.parametrize("sigma", [0, 4, 20])
@pytest.mark.parametrize("size", [(90, 121), (2, 50), (33, 33)])
def test_the_noise_of_a_frame(size, sigma):
    rng = np.random.default_rng(sigma)
    frame = np.clip(100 + rng.normal(0, sigma, (*size, 3)), 0, 255).astype(np.uint8)
    ours = TensorPictures(Letterbox.fitting(size, MODEL, 16), CPU)
    grey = ours._grey(torch.from_numpy(frame))
    theirs = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    assert np.array_equal(grey[0, 0].numpy(), theirs)
    assert float(ours._noise(grey)) == pytest.approx(noise_level(theirs), abs=1e-6)
