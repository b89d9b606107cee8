"""The losses on images whose values are known."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from magicfuse_ros.training.losses import sobel, visual_loss, weighted_l1, ycrcb


def flat(red, green=None, blue=None):
    """(1, 3, 6, 8) of one colour."""
    channels = (red, red if green is None else green, red if blue is None else blue)
    return torch.tensor(channels)[None, :, None, None].expand(1, 3, 6, 8).contiguous()


def test_sobel_of_a_ramp_is_eight_times_its_slope_inside():
    ramp = 0.1 * torch.arange(8.0).expand(2, 3, 6, 8)
    edges = sobel(ramp)
    assert edges.shape == ramp.shape
    torch.testing.assert_close(edges[..., 1:-1], torch.full((2, 3, 6, 6), 0.8))
    # Replicated borders see half of the slope.
    torch.testing.assert_close(edges[..., 0], torch.full((2, 3, 6), 0.4))
    torch.testing.assert_close(sobel(ramp.transpose(2, 3)), edges.transpose(2, 3))


def test_sobel_sums_both_directions_and_keeps_channels_apart():
    row, column = torch.arange(6.0)[:, None], torch.arange(8.0)[None]
    image = torch.stack([0.1 * row + 0.2 * column, torch.zeros(6, 8)])[None]
    edges = sobel(image)
    torch.testing.assert_close(edges[0, 0, 1:-1, 1:-1], torch.full((4, 6), 2.4))
    assert float(edges[0, 1].abs().max()) == 0.0


@pytest.mark.parametrize(
    ("color", "expected"),
    [
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ((1.0, 0.0, 0.0), (0.299, 0.99981, 0.331364)),
        ((0.0, 0.0, 1.0), (0.114, 0.418718, 0.999704)),
    ],
)
def test_ycrcb_is_bt601(color, expected):
    for plane, value in zip(ycrcb(flat(*color)), expected, strict=True):
        assert plane.shape == (1, 1, 6, 8)
        torch.testing.assert_close(plane, torch.full_like(plane, value), atol=1e-5, rtol=0.0)


def test_visual_loss_wants_the_brighter_of_both_and_the_color_of_the_restored():
    terms = visual_loss(flat(0.7), flat(0.2), flat(0.6))
    assert float(terms["contrast"]) == pytest.approx(0.1, abs=1e-6)
    assert float(terms["texture"]) == pytest.approx(0.0, abs=1e-6)
    assert float(terms["color"]) == pytest.approx(0.0, abs=1e-6)
    red = visual_loss(flat(1.0, 0.0, 0.0), flat(0.299), flat(0.0))
    assert float(red["contrast"]) == pytest.approx(0.0, abs=1e-6)
    assert float(red["color"]) == pytest.approx(0.49981 + 0.168636, abs=1e-4)


def test_contrast_counts_by_weight_and_edges_and_color_do_not():
    magimg = torch.cat([flat(0.7), flat(0.2)], dim=2)
    both = torch.cat([flat(0.6), flat(0.6)], dim=2)
    weight = torch.cat([torch.ones(1, 1, 6, 8), torch.full((1, 1, 6, 8), 3.0)], dim=2)
    terms = visual_loss(magimg, both, both, weight)
    assert float(terms["contrast"]) == pytest.approx((0.1 + 3.0 * 0.4) / 4.0, abs=1e-6)
    alike = visual_loss(magimg, both, both)
    assert float(alike["contrast"]) == pytest.approx((0.1 + 0.4) / 2.0, abs=1e-6)
    for name in ("texture", "color"):
        torch.testing.assert_close(terms[name], alike[name])


def test_where_it_is_cold_the_restored_image_is_wanted():
    ramp = 0.1 * torch.arange(8.0).expand(1, 3, 6, 8)
    enhanced, infrared = 0.2 + 0.0 * ramp, ramp
    cold = torch.zeros(1, 1, 6, 8, dtype=torch.bool)
    cold[..., :3, :] = True
    wanted = torch.where(cold, enhanced, torch.maximum(enhanced, infrared))
    terms = visual_loss(wanted, enhanced, infrared, cold=cold)
    assert float(terms["contrast"]) == pytest.approx(0.0, abs=1e-6)
    terms = visual_loss(enhanced, enhanced, infrared, cold=cold)
    missing = (infrared - enhanced).clamp(min=0.0)[:, :1, 3:].sum() / 48
    assert float(terms["contrast"]) == pytest.approx(float(missing), abs=1e-6)
    assert float(terms["texture"]) == pytest.approx((6 * 0.8 + 2 * 0.4) / 8 / 2, abs=1e-6)
    terms = visual_loss(enhanced, enhanced, infrared, cold=torch.ones_like(cold))
    assert float(terms["contrast"]) == float(terms["texture"]) == 0.0


def test_visual_loss_wants_the_stronger_edge_of_both():
    ramp = 0.1 * torch.arange(8.0).expand(1, 3, 6, 8)
    assert float(visual_loss(ramp, 0.5 * ramp, ramp)["texture"]) == pytest.approx(0.0, abs=1e-6)
    # 0.4 less than the ramp's 0.8 inside, 0.2 less at the two borders.
    missing = visual_loss(0.5 * ramp, 0.5 * ramp, ramp)["texture"]
    assert float(missing) == pytest.approx((6 * 0.4 + 2 * 0.2) / 8, abs=1e-6)


def test_weighted_l1_counts_errors_by_their_weight():
    target = torch.zeros(1, 2, 1, 2)
    prediction = torch.tensor([[[[1.0, 3.0]], [[0.0, 3.0]]]])
    weight = torch.tensor([[[[3.0, 1.0]]]])
    assert float(weighted_l1(prediction, target, weight)) == pytest.approx((3 * 0.5 + 3.0) / 4)


@given(scale=st.floats(0.01, 100.0), seed=st.integers(0, 1000))
def test_weighted_l1_with_equal_weights_is_the_mean(scale, seed):
    generator = torch.Generator().manual_seed(seed)
    prediction, target = torch.rand(2, 2, 3, 4, 5, generator=generator)
    weight = torch.full((2, 1, 4, 5), scale)
    expected = (prediction - target).abs().mean()
    torch.testing.assert_close(weighted_l1(prediction, target, weight), expected)


def test_weighted_l1_of_no_weight_is_zero():
    ones = torch.ones(1, 1, 2, 2)
    assert float(weighted_l1(ones, 0.0 * ones, 0.0 * ones)) == 0.0
