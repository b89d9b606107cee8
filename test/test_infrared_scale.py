import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magicfuse_ros.training.infrared import (
    MAX_GAIN,
    MEDIAN,
    InfraredScale,
    common_infrared_scale,
)

ALL_LEVELS = np.arange(256, dtype=np.uint8)[None]


def thermal(low, middle, high, seed=0):
    """A camera's picture: half background at `middle`, sky at `low`, 2 % people at `high`."""
    rng = np.random.default_rng(seed)
    image = np.full((100, 100), middle, float)
    image[:30] = low
    image[50:60, 40:60] = high
    return np.clip(image + rng.normal(0, 1, image.shape), 0, 255).astype(np.uint8)


@settings(deadline=None)
@given(
    levels=st.lists(st.integers(0, 255), min_size=1, max_size=50),
)
def test_map_is_monotone_whatever_the_image(levels):
    scale = common_infrared_scale([np.array([levels], np.uint8)])
    mapped = scale.apply(ALL_LEVELS).astype(int)
    assert (np.diff(mapped) >= 0).all()


def test_cameras_with_different_scales_come_to_one():
    msrs, roadscene = thermal(8, 26, 140), thermal(30, 132, 245)
    results = [common_infrared_scale([image]).apply(image) for image in (msrs, roadscene)]
    medians = [np.median(result) / 255 for result in results]
    assert medians == pytest.approx([MEDIAN, MEDIAN], abs=0.06)
    people = [float(result[55, 50]) for result in results]
    assert min(people) > 220
    before = abs(float(np.median(msrs)) - float(np.median(roadscene)))
    assert abs(medians[0] - medians[1]) * 255 < before / 4


def test_a_scene_without_heat_stays_flat():
    flat = thermal(20, 24, 26)
    result = common_infrared_scale([flat]).apply(flat)
    # The gamma steepens the map by up to half in the dark.
    assert float(result.std()) <= MAX_GAIN * 1.5 * float(flat.std())


def test_frames_of_a_video_share_a_scale():
    frames = [thermal(8, 26, 140, seed) for seed in range(3)]
    scale = common_infrared_scale(frames)
    assert scale.apply(frames[0])[0, 0] <= scale.apply(frames[0])[99, 0]
    assert scale == common_infrared_scale(frames[::-1])


def test_errors_name_the_value():
    with pytest.raises(ValueError, match="pass at least one"):
        common_infrared_scale([])
    with pytest.raises(ValueError, match="low=3"):
        InfraredScale(3.0, 3.0, 1.0)
