"""The paper's ablations: what each of Models I to IV leaves out, and nothing else."""

from __future__ import annotations

import pytest
import torch
from support.small_models import SMALL_FEW_STEP, fill

from magicfuse_ros.evaluation.ablations import NoEstimates, ablated, late_fusion
from magicfuse_ros.model.diffusion import Estimate
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.sampler import SamplerSettings, sample

EVERY_CLASS = tuple(range(12))


@pytest.fixture(scope="module")
def model():
    made = MagicFuse.from_config(SMALL_FEW_STEP).eval()
    fill(made)
    return made


def run(model, variant, networks=None):
    image = torch.rand((1, 3, 16, 24), generator=torch.Generator().manual_seed(1))
    noise = model.draw_noise(16, 24, torch.Generator().manual_seed(2))
    own, settings = ablated(model, SamplerSettings.of(model.config, EVERY_CLASS), variant)
    with torch.inference_mode():
        return sample(networks or own, model.encoder(image), noise, model.config, settings)


def test_the_full_model_is_the_model(model):
    settings = SamplerSettings.of(model.config, EVERY_CLASS)
    assert ablated(model, settings, "full") == (model, settings)
    assert ablated(model, settings, "late_fusion") == (model, settings)  # only decoded otherwise


def test_model_one_hides_the_estimates_from_f(model):
    seen = []

    class Listening:
        denoise = model.denoise

        def fuse(self, psi, phi, *others):
            seen.append((psi, phi))
            return model.fuse(psi, phi, *others)

    step = run(model, "no_estimates", NoEstimates(Listening()))
    full = run(model, "full")
    assert len(seen) == SMALL_FEW_STEP.diffusion.steps
    for estimate in (each for pair in seen for each in pair):
        assert isinstance(estimate, Estimate)
        assert estimate.z0.eq(0).all()
        assert estimate.eps.ne(0).any()
    assert torch.equal(step.z0_psi, full.z0_psi)
    assert not torch.equal(step.w_r, full.w_r)
    assert torch.equal(step.w_r, run(model, "no_estimates").w_r)


def test_model_two_never_limits_the_weight(model):
    full, step = run(model, "full"), run(model, "no_segmentation")
    assert full.radiation.eq(1).all()
    assert full.w_r.max() <= 0.4
    assert step.radiation.eq(0).all()
    assert step.w_r.max() > 0.4


def test_model_four_is_psi_alone(model, monkeypatch):
    full = run(model, "full")
    monkeypatch.setattr(model, "phi", None)
    step = run(model, "restore_only")
    assert step.w_r.eq(1).all()
    assert torch.equal(step.z0_psi, full.z0_psi)
    torch.testing.assert_close(step.z0_fused, step.z0_psi, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("w", "expected"), [(0.25, 0.25), (1.7, 1.0), (-0.3, 0.0)])
def test_model_three_weighs_the_decoded_pictures(w, expected):
    bright, dark = torch.ones(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    fused = late_fusion(bright, dark, torch.full((1, 8, 2, 2), w))
    torch.testing.assert_close(fused, torch.full_like(bright, expected))
