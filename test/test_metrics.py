import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from magicfuse_ros.evaluation import metrics

GREY = arrays(np.uint8, (12, 14))
PERFECT_QABF = 0.9994 / (1 + math.exp(-7.5)) * 0.9879 / (1 + math.exp(-4.4))
few = settings(max_examples=25, deadline=None)


def flat(level, shape=(16, 20)):
    return np.full(shape, level, np.uint8)


def step_edge(low, high):
    image = flat(low)
    image[:, 10:] = high
    return image


# EN and MI


def test_entropy_of_known_histograms():
    assert metrics.entropy(flat(7)) == 0.0
    assert metrics.entropy(step_edge(0, 255)) == pytest.approx(1.0)
    assert metrics.entropy(np.arange(256, dtype=np.uint8).reshape(16, 16)) == pytest.approx(8.0)


def test_mutual_information_of_independent_images_is_zero():
    rows, columns = (np.asarray(m, np.uint8) for m in np.mgrid[0:16, 0:16])
    assert metrics.mutual_information(rows, columns) == pytest.approx(0.0, abs=1e-9)


@few
@given(GREY, GREY)
def test_mutual_information_is_symmetric_bounded_and_blind_to_renaming_of_levels(a, b):
    value = metrics.mutual_information(a, b)
    assert value == pytest.approx(metrics.mutual_information(b, a), abs=1e-9)
    assert 0.0 <= value <= min(metrics.entropy(a), metrics.entropy(b)) + 1e-9
    assert value == pytest.approx(metrics.mutual_information(255 - a, b), abs=1e-9)


@few
@given(GREY)
def test_an_image_tells_all_about_itself(image):
    own = metrics.entropy(image)
    assert metrics.mutual_information(image, image) == pytest.approx(own, abs=1e-9)
    both = metrics.fusion_mutual_information(image, image, image)
    assert both == pytest.approx(2 * own, abs=1e-9)


# Qabf


def test_qabf_of_kept_edges_is_the_sigmoids_top():
    image = step_edge(40, 200)
    assert metrics.qabf(image, image, image) == pytest.approx(PERFECT_QABF)
    assert metrics.qabf(image, flat(0), image) == pytest.approx(PERFECT_QABF)


def test_qabf_of_an_edge_at_half_strength():
    expected = 0.9994 / 2 * 0.9879 / (1 + math.exp(-4.4))
    assert metrics.qabf(step_edge(0, 200), flat(9), step_edge(0, 100)) == pytest.approx(expected)
    # Stronger than the source is as wrong as weaker.
    assert metrics.qabf(step_edge(0, 100), flat(9), step_edge(0, 200)) == pytest.approx(expected)


def test_qabf_of_an_edge_turned_by_a_right_angle_is_next_to_nothing():
    turned = np.ascontiguousarray(np.tile(step_edge(0, 200)[:1, :], (20, 1)).T)
    square = np.tile(step_edge(0, 200)[:1, :], (20, 1))
    crossing = metrics.qabf(square, flat(0, (20, 20)), turned)
    assert crossing < 0.01


def test_qabf_without_edges_is_undefined():
    assert math.isnan(metrics.qabf(flat(3), flat(90), step_edge(0, 9)))


@few
@given(GREY, GREY, GREY)
def test_qabf_is_bounded_symmetric_and_blind_to_the_sign_of_an_edge(a, b, fused):
    value = metrics.qabf(a, b, fused)
    if math.isnan(value):
        return
    assert 0.0 <= value <= PERFECT_QABF + 1e-9
    assert value == pytest.approx(metrics.qabf(b, a, fused))
    assert value == pytest.approx(metrics.qabf(a, b, 255 - fused))


@few
@given(GREY)
def test_qabf_of_any_image_fused_with_itself_is_the_top(image):
    value = metrics.qabf(image, image, image)
    assert math.isnan(value) or value == pytest.approx(PERFECT_QABF)


# PSNR and SSIM


@few
@given(st.integers(0, 200), st.integers(1, 55))
def test_psnr_of_a_constant_error(level, error):
    value = metrics.psnr_db(flat(level), flat(level + error))
    assert value == pytest.approx(20 * math.log10(255 / error), abs=1e-4)


def test_psnr_of_equal_images_is_infinite():
    assert metrics.psnr_db(step_edge(1, 2), step_edge(1, 2)) == math.inf


def test_the_two_psnr_conventions():
    visible, infrared, fused = flat(100), flat(140), flat(110)
    mean_squared = (10**2 + 30**2) / 2 / 255**2
    true = metrics.psnr_two_sources_db(visible, infrared, fused)
    assert true == pytest.approx(-10 * math.log10(mean_squared), abs=1e-6)
    convention = metrics.psnr_fusion_convention_db(visible, infrared, fused)
    assert convention == pytest.approx(20 * math.log10(255 / math.sqrt(mean_squared)), abs=1e-6)
    assert convention - true == pytest.approx(48.13, abs=0.001)


def test_ssim_of_constant_images_is_its_luminance_term():
    a, b, c1 = 60 / 255, 180 / 255, 0.01**2
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    assert metrics.ssim(flat(60), flat(180)) == pytest.approx(expected, abs=1e-3)
    color = np.dstack((flat(60), flat(60), flat(180)))
    grey = np.dstack((flat(180), flat(60), flat(180)))
    assert metrics.ssim(color, grey) == pytest.approx((expected + 2) / 3, abs=1e-3)


@few
@given(GREY, GREY)
def test_ssim_of_two_sources_is_the_mean_and_of_itself_one(a, b):
    # float32 of flat, bright pictures costs up to 0.0021 here.
    assert metrics.ssim(a, a) == pytest.approx(1.0, abs=5e-3)
    both = metrics.ssim_two_sources(a, b, a)
    assert both == pytest.approx((1.0 + metrics.ssim(a, b)) / 2, abs=5e-3)


@pytest.mark.parametrize("measure", [metrics.psnr_db, metrics.ssim, metrics.mutual_information])
def test_images_of_different_shapes_are_refused(measure):
    with pytest.raises(ValueError, match=r"\(16, 20\) and \(16, 21\)"):
        measure(flat(0), flat(0, (16, 21)))


# Contrast of objects


def test_contrast_is_inside_minus_ring():
    image = flat(50, (40, 40))
    image[10:20, 10:20] = 170
    assert metrics.box_contrast(image, (10, 10, 20, 20)) == pytest.approx(120.0)
    # The ring is 5 wide: what lies beyond does not count.
    image[:, 26:] = 255
    assert metrics.box_contrast(image, (10, 10, 20, 20)) == pytest.approx(120.0)


def test_contrast_leaves_other_objects_out_of_the_ring():
    image = flat(50, (40, 40))
    image[10:20, 10:20] = 170
    image[10:20, 20:30] = 170
    assert metrics.box_contrast(image, (10, 10, 20, 20)) < 120.0
    other = (20, 10, 30, 20)
    assert metrics.box_contrast(image, (10, 10, 20, 20), [other]) == pytest.approx(120.0)


def test_contrast_at_the_border_and_without_a_ring():
    image = flat(50, (40, 40))
    image[:4, :4] = 80
    assert metrics.box_contrast(image, (0, 0, 4, 4)) == pytest.approx(30.0)
    assert math.isnan(metrics.box_contrast(image, (0, 0, 40, 40)))


# Segmentation


def test_confusion_leaves_unknown_pixels_out():
    truth = np.array([[0, 0, 1, 1], [1, 1, 255, 255]], np.uint8)
    found = np.array([[0, 1, 1, 1], [1, 0, 0, 2]], np.uint8)
    counted = metrics.Confusion(3)
    counted.add(found, truth)
    np.testing.assert_array_equal(counted.matrix(), [[1, 1, 0], [1, 3, 0], [0, 0, 0]])
    iou = counted.iou()
    assert iou[:2] == pytest.approx([1 / 3, 3 / 5])
    assert math.isnan(iou[2])
    assert counted.recall()[:2] == pytest.approx([1 / 2, 3 / 4])
    assert metrics.mean(iou) == pytest.approx((1 / 3 + 3 / 5) / 2)


@few
@given(
    arrays(np.uint8, (2, 6, 7), elements=st.sampled_from([0, 1, 2, 3, 255])),
    arrays(np.uint8, (2, 6, 7), elements=st.integers(0, 3)),
)
def test_iou_over_several_images_is_that_of_all_their_pixels(truth, found):
    counted = metrics.Confusion(4)
    for one_found, one_truth in zip(found, truth, strict=True):
        counted.add(one_found, one_truth)
    known = truth != 255
    for k, value in enumerate(counted.iou()):
        both = ((found == k) & (truth == k)).sum()
        either = (((found == k) & known) | (truth == k)).sum()
        if (truth == k).any():
            assert value == pytest.approx(both / either)
        else:
            assert math.isnan(value)


def test_mean_of_nothing_is_nan():
    assert math.isnan(metrics.mean([]))
    assert math.isnan(metrics.mean([math.nan]))
    assert metrics.mean([1.0, math.nan, 3.0]) == 2.0
    assert metrics.mean([1.0, math.inf]) == math.inf
