"""The diffusion arithmetic: golden numbers, diffusers as a second opinion, exact conversions.

diffusers takes seconds to import: only the tests that ask it do, not every process that collects.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magicfuse_ros.model.config import DiffusionConfig
from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.model.diffusion import (
    add_noise,
    alphas_cumprod,
    coefficients,
    estimates,
    input_gain,
    noise_from,
    timesteps,
    training_coefficients,
    training_target,
)

CONFIG = DiffusionConfig()
VALUE = st.floats(-3.0, 3.0)
TIMESTEP = st.integers(0, 999)


# The schedule


def test_golden_alphas():
    alpha_bars = alphas_cumprod(CONFIG)
    assert alpha_bars.shape == (1000,)
    assert alpha_bars.dtype == np.float64
    # The product in forty-digit decimals.
    for t, golden in (
        (0, 0.99915),
        (249, 0.5708661560889993),
        (499, 0.16181214591340212),
        (749, 0.022728803057605423),
        (999, 0.0015789629305514416),
    ):
        assert alpha_bars[t] == pytest.approx(golden, rel=1e-12)


def test_sqrt_alpha_is_what_the_design_quotes():
    alpha_bars = alphas_cumprod(CONFIG)
    assert coefficients(alpha_bars[999])[0] == pytest.approx(0.0397, abs=5e-5)
    for t, amplification in ((999, 25), (749, 6.6), (499, 2.5), (249, 1.3)):
        assert 1.0 / coefficients(alpha_bars[t])[0] == pytest.approx(amplification, rel=0.02)


def test_the_schedule_only_gets_noisier():
    alpha_bars = alphas_cumprod(CONFIG)
    assert (np.diff(alpha_bars) < 0).all()
    assert 0.0 < alpha_bars[-1] < alpha_bars[0] < 1.0


@pytest.mark.no_cover  # the tracer would slow the import by half
def test_the_schedule_is_the_one_of_diffusers():
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.0120, beta_schedule="linear"
    )
    np.testing.assert_allclose(scheduler.alphas_cumprod.numpy(), alphas_cumprod(CONFIG), rtol=2e-5)


# The timesteps


def test_golden_timesteps():
    assert timesteps(25, 1000, "leading") == list(range(960, -1, -40))
    assert timesteps(4, 1000, "trailing") == [999, 749, 499, 249]
    assert timesteps(1, 1000, "trailing") == [999]
    assert timesteps(2, 1000, "trailing") == [999, 499]
    assert timesteps(7, 1000, "trailing") == [999, 856, 713, 570, 428, 285, 142]
    assert timesteps(1, 1000, "leading") == [0]
    assert timesteps(2, 1000, "leading") == [500, 0]
    assert timesteps(7, 1000, "leading") == [852, 710, 568, 426, 284, 142, 0]


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_a_thousand_steps_visit_every_timestep(spacing):
    assert timesteps(1000, 1000, spacing) == list(range(999, -1, -1))


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_every_step_count_gives_that_many_falling_timesteps(spacing):
    for steps in range(1, 1001):
        values = timesteps(steps, 1000, spacing)
        assert len(values) == steps
        assert all(type(value) is int for value in values)
        assert all(first > second for first, second in pairwise(values))
        assert 0 <= values[-1] <= values[0] <= 999
        assert (values[-1] == 0) if spacing == "leading" else (values[0] == 999)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_the_timesteps_are_those_of_diffusers(spacing):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(num_train_timesteps=1000, timestep_spacing=spacing, steps_offset=0)
    for steps in (*range(1, 60), 99, 100, 250, 333, 500, 501, 750, 1000):
        scheduler.set_timesteps(steps)
        assert timesteps(steps, 1000, spacing) == scheduler.timesteps.tolist(), steps


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_step_counts_are_refused(steps):
    with pytest.raises(ConfigError, match=rf"steps is {steps}; accepted: 1 to 1000"):
        timesteps(steps, 1000, "leading")


# The conversions


def point(t, z0, eps):
    a, s = coefficients(alphas_cumprod(CONFIG)[t])
    z0, eps = (torch.tensor([value], dtype=torch.float64) for value in (z0, eps))
    return a, s, z0, eps, add_noise(z0, eps, a, s)


@given(t=TIMESTEP)
def test_signal_and_noise_keep_unit_variance(t):
    a, s = coefficients(alphas_cumprod(CONFIG)[t])
    assert a > 0.0
    assert s > 0.0
    assert math.isclose(a * a + s * s, 1.0, rel_tol=1e-12)


@settings(deadline=None)
@given(t=TIMESTEP, z0=VALUE, eps=VALUE, kind=st.sampled_from(["eps", "v", "z0"]))
def test_a_perfect_prediction_of_any_kind_gives_back_both(t, z0, eps, kind):
    a, s, z0, eps, z_t = point(t, z0, eps)
    prediction = training_target(z0, eps, torch.tensor(a), torch.tensor(s), kind)
    estimate = estimates(prediction.double(), z_t, a, s, kind, clip=False)
    torch.testing.assert_close(estimate.z0, z0, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(estimate.eps, eps, atol=1e-5, rtol=1e-5)


@settings(deadline=None)
@given(
    t=TIMESTEP, z_t=VALUE, out=VALUE, kind=st.sampled_from(["eps", "v", "z0"]), clip=st.booleans()
)
def test_every_estimate_explains_z_t(t, z_t, out, kind, clip):
    a, s = coefficients(alphas_cumprod(CONFIG)[t])
    z_t, out = (torch.tensor([value], dtype=torch.float64) for value in (z_t, out))
    estimate = estimates(out, z_t, a, s, kind, clip=clip)
    rebuilt = add_noise(estimate.z0, estimate.eps, a, s)
    torch.testing.assert_close(rebuilt, z_t, atol=1e-9, rtol=1e-9)
    if clip:
        assert estimate.z0.abs().max() <= 1.0


@settings(deadline=None)
@given(t=TIMESTEP, z0=VALUE, eps=VALUE)
def test_noise_and_clean_are_inverse(t, z0, eps):
    a, s, z0, eps, z_t = point(t, z0, eps)
    torch.testing.assert_close(noise_from(z0, z_t, a, s), eps, atol=1e-9, rtol=1e-9)
    clean = estimates(eps, z_t, a, s, "eps", clip=False).z0
    torch.testing.assert_close(clean, z0, atol=1e-9, rtol=1e-9)
    clipped = estimates(eps, z_t, a, s, "eps", clip=True).z0
    torch.testing.assert_close(clipped, z0.clamp(-1, 1), atol=1e-9, rtol=1e-9)


def test_an_unclipped_eps_prediction_is_taken_as_it_is():
    out, z_t = torch.tensor([0.25]), torch.tensor([0.5])
    assert estimates(out, z_t, 0.0397, 0.9992, "eps", clip=False).eps is out


def test_v_by_hand():
    # a = 0.6, s = 0.8, z0 = 0.5, ε = -1: z_t = -0.5 and v = 0.6·(-1) − 0.8·0.5 = -1.
    z0, eps = torch.tensor([0.5]), torch.tensor([-1.0])
    v = training_target(z0, eps, torch.tensor(0.6), torch.tensor(0.8), "v")
    assert v.item() == pytest.approx(-1.0)
    estimate = estimates(v, torch.tensor([-0.5]), 0.6, 0.8, "v", clip=False)
    assert estimate.z0.item() == pytest.approx(0.5)
    assert estimate.eps.item() == pytest.approx(-1.0)


def test_training_coefficients_are_those_of_sampling():
    alpha_bars = alphas_cumprod(CONFIG)
    t = torch.tensor([0, 249, 999])
    a, s = training_coefficients(torch.tensor(alpha_bars), t)
    assert a.shape == s.shape == (3, 1, 1, 1)
    for index, step in enumerate(t.tolist()):
        expected = coefficients(alpha_bars[step])
        assert (a[index].item(), s[index].item()) == pytest.approx(expected, rel=1e-4)


def test_the_input_gain():
    assert input_gain(0.0397, DiffusionConfig()) == 1.0
    assert input_gain(0.0397, DiffusionConfig(scale_inputs=True)) == 0.0397
