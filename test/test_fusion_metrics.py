"""The scores of fused pictures: known cases, and formulas written anew from their papers."""

import math

import cv2
import numpy as np
import pytest

from magicfuse_ros.evaluation import fusion_metrics, metrics
from magicfuse_ros.evaluation.fusion_metrics import FUSION_METRICS, fusion_columns, fusion_scores


def flat(level):
    return np.full((48, 64), level, np.uint8)


@pytest.fixture(scope="module")
def images():
    """A street-like visible and infrared picture, and a fused one that is nearly their mean."""
    rng = np.random.default_rng(7)
    visible, infrared = (
        cv2.resize(rng.integers(0, 256, size, np.uint8), (96, 72), interpolation=cv2.INTER_CUBIC)
        for size in ((12, 16), (5, 7))
    )
    noise = rng.normal(0, 6, visible.shape)
    mixed = 0.6 * visible.astype(float) + 0.4 * infrared + noise
    return visible, infrared, np.clip(mixed, 0, 255).astype(np.uint8)


# Known cases


def test_a_constant_picture_has_no_detail_and_says_nothing():
    scores = fusion_scores(flat(90), flat(40), flat(90), tuple(FUSION_METRICS))
    assert [scores[name] for name in ("EN", "MI", "SF", "SD", "AG")] == [0.0] * 5
    assert all(math.isnan(scores[name]) for name in ("Qabf", "SCD", "VIF"))


def test_spatial_frequency_deviation_and_gradient_of_known_pictures():
    stripes = np.tile(np.array([10, 30], np.uint8), (48, 32))
    assert fusion_metrics.spatial_frequency(stripes) == pytest.approx(20.0)
    assert fusion_metrics.standard_deviation(stripes) == pytest.approx(10.0)
    assert fusion_metrics.average_gradient(stripes) == pytest.approx(20.0 / math.sqrt(2.0))
    assert fusion_metrics.spatial_frequency(stripes.T) == pytest.approx(20.0)


def test_the_sum_of_two_sources_has_both_differences_wholly(images):
    visible, infrared = images[0] // 2, images[1] // 2
    assert fusion_metrics.sum_of_correlations(visible, infrared, visible + infrared) == (
        pytest.approx(2.0)
    )
    # A copy of one source: the difference to the other source says nothing of that other.
    assert math.isnan(fusion_metrics.sum_of_correlations(visible, infrared, visible))


def test_a_picture_fused_of_itself_keeps_all_visual_information(images):
    visible, _, fused = images
    assert fusion_metrics.visual_information(visible, visible, visible) == pytest.approx(2.0)
    blurred = cv2.GaussianBlur(fused, (0, 0), 2)
    assert fusion_metrics.visual_information(fused, fused, blurred) < 1.5
    with pytest.raises(ValueError, match="41 x 41 or larger"):
        fusion_metrics.visual_information(*(image[:40] for image in images))


def test_scores_and_columns_have_one_order():
    names = ("VIF", "EN")
    assert [column.name for column in fusion_columns(names)] == ["VIF", "EN (bit)"]
    assert list(fusion_scores(flat(1), flat(2), flat(3), names)) == list(names)


# Independent formulas


def plain_entropy(image):
    """Shannon's sum over the levels that occur."""
    return -sum(
        share * math.log2(share)
        for level in range(256)
        if (share := float(np.mean(image == level))) > 0
    )


def plain_information(first, second):
    """Kullback-Leibler divergence of the joint histogram from the product of its margins."""
    joint, *_ = np.histogram2d(first.ravel(), second.ravel(), bins=np.arange(257))
    joint /= joint.sum()
    apart = joint.sum(1, keepdims=True) @ joint.sum(0, keepdims=True)
    held = joint > 0
    return float((joint[held] * np.log2(joint[held] / apart[held])).sum())


def plain_mi(visible, infrared, fused):
    return plain_information(visible, fused) + plain_information(infrared, fused)


def windowed(image, side, sigma, *, mode="reflect"):
    """Weigh every window by a Gaussian; only whole windows where mode is None."""
    reach = side // 2
    line = np.exp(-((np.arange(side) - reach) ** 2) / (2 * sigma**2))
    kernel = np.outer(line, line) / line.sum() ** 2
    padded = image if mode is None else np.pad(image, reach, mode=mode)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side))
    return np.einsum("ijkl,kl->ij", windows, kernel)


def plain_ssim(visible, infrared, fused):
    """Wang et al. (2004), windows of 11 x 11, mirrored at the border as torchmetrics does."""
    values = []
    for source in (visible, infrared):
        x, y = fused / 255.0, source / 255.0
        mx, my, xx, yy, xy = (windowed(z, 11, 1.5) for z in (x, y, x * x, y * y, x * y))
        c1, c2 = 0.01**2, 0.03**2
        part = (2 * mx * my + c1) * (2 * (xy - mx * my) + c2)
        whole = (mx**2 + my**2 + c1) * (xx - mx**2 + yy - my**2 + c2)
        values.append((part / whole).mean())
    return sum(values) / 2


def plain_qabf(visible, infrared, fused):
    """Xydeas and Petrovic (2000), pixel by pixel."""

    def edge(image, y, x):
        rows, columns = image.shape
        near = [
            [float(image[mirror(y + j, rows), mirror(x + i, columns)]) for i in (-1, 0, 1)]
            for j in (-1, 0, 1)
        ]
        sx = sum(w * (near[j][2] - near[j][0]) for j, w in enumerate((1, 2, 1)))
        sy = sum(w * (near[2][i] - near[0][i]) for i, w in enumerate((1, 2, 1)))
        return math.hypot(sx, sy), math.atan(sy / sx) if sx else math.copysign(math.pi / 2, sy)

    def mirror(k, size):
        return -k if k < 0 else 2 * (size - 1) - k if k >= size else k

    kept = total = 0.0
    for y in range(fused.shape[0]):
        for x in range(fused.shape[1]):
            gf, af = edge(fused, y, x)
            for source in (visible, infrared):
                g, a = edge(source, y, x)
                ratio = min(g, gf) / max(g, gf) if max(g, gf) else 0.0
                turn = abs(abs(a - af) - math.pi / 2) / (math.pi / 2)
                strength = 0.9994 / (1 + math.exp(-15 * (ratio - 0.5)))
                kept += g * strength * 0.9879 / (1 + math.exp(-22 * (turn - 0.8)))
                total += g
    return kept / total


def plain_psnr(visible, infrared, fused):
    error = [np.mean((source / 255.0 - fused / 255.0) ** 2) for source in (visible, infrared)]
    return 20 * math.log10(255 / math.sqrt(sum(error) / 2))


def plain_vif(visible, infrared, fused):
    """Sheikh and Bovik (2006), pixel domain, four scales, noise of variance 2."""
    total = 0.0
    for source in (visible, infrared):
        kept = held = 0.0
        r, d = source.astype(float), fused.astype(float)
        for scale in range(1, 5):
            side = 2 ** (5 - scale) + 1
            if scale > 1:
                r, d = (windowed(z, side, side / 5, mode=None)[::2, ::2] for z in (r, d))
            mr, md, rr, dd, rd = (
                windowed(z, side, side / 5, mode=None) for z in (r, d, r * r, d * d, r * d)
            )
            vr, vd, cov = np.maximum(rr - mr**2, 0), np.maximum(dd - md**2, 0), rd - mr * md
            gain = cov / (vr + 1e-10)
            noise = vd - gain * cov
            noise = np.where(gain < 0, vd, noise)
            gain = np.maximum(gain, 0)
            kept += np.log10(1 + gain**2 * vr / (np.maximum(noise, 1e-10) + 2)).sum()
            held += np.log10(1 + vr / 2).sum()
        total += kept / held
    return total


def plain_scd(visible, infrared, fused):
    a, b, f = (image.ravel().astype(float) for image in (visible, infrared, fused))
    return np.corrcoef(f - b, a)[0, 1] + np.corrcoef(f - a, b)[0, 1]


def plain_sf(_visible, _infrared, fused):
    f = fused.astype(float)
    rows = np.mean([(f[:, n] - f[:, n - 1]) ** 2 for n in range(1, f.shape[1])])
    columns = np.mean([(f[m] - f[m - 1]) ** 2 for m in range(1, f.shape[0])])
    return math.sqrt(rows + columns)


def plain_ag(_visible, _infrared, fused):
    f = fused.astype(float)
    return np.mean([
        math.sqrt(((f[m, n + 1] - f[m, n]) ** 2 + (f[m + 1, n] - f[m, n]) ** 2) / 2)
        for m in range(f.shape[0] - 1)
        for n in range(f.shape[1] - 1)
    ])  # fmt: skip


def plain_sd(_visible, _infrared, fused):
    return math.sqrt(np.mean(fused.astype(float) ** 2) - fused.mean() ** 2)


PLAIN = {
    "EN": (lambda _v, _i, fused: plain_entropy(fused), 1e-9),
    "MI": (plain_mi, 1e-9),
    "Qabf": (plain_qabf, 1e-9),
    "SSIM": (plain_ssim, 1e-4),  # ours is float32
    "PSNR_true": (lambda *of: plain_psnr(*of) - metrics.FUSION_CONVENTION_DB, 1e-5),
    "PSNR_fusion": (plain_psnr, 1e-5),
    "PSNR_visible": (lambda v, _i, f: -10 * math.log10(np.mean((v / 255 - f / 255) ** 2)), 1e-5),
    "SF": (plain_sf, 1e-9),
    "SD": (plain_sd, 1e-9),
    "AG": (plain_ag, 1e-9),
    "SCD": (plain_scd, 1e-9),
    "VIF": (plain_vif, 1e-4),
}


@pytest.mark.parametrize("name", FUSION_METRICS)
def test_each_score_agrees_with_the_formula_of_its_paper(images, name):
    plain, within = PLAIN[name]
    ours, theirs = FUSION_METRICS[name].of(*images), plain(*images)
    print(f"{name}: ours {ours:.9g}, anew {theirs:.9g}, apart {abs(ours - theirs):.1e}")
    assert ours == pytest.approx(theirs, abs=within)
