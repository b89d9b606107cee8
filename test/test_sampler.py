"""The joint sampler: golden sums, perfect and constant networks, diffusers' DDIM."""

from __future__ import annotations

import dataclasses
from unittest import mock

import pytest
import torch
from support.pictures import pictures_of
from support.small_models import SMALL_FEW_STEP, SMALL_PAPER, fill

from magicfuse_ros.model import sampler
from magicfuse_ros.model.config import DiffusionConfig
from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.model.diffusion import (
    add_noise,
    alphas_cumprod,
    coefficients,
    input_gain,
    training_target,
)
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.sampler import STATE_LIMIT, Noise, SamplerSettings, Step, sample

SIZE, CLASSES = (3, 5), 4
STEP_COUNTS = [1, 2, 7, 25, 1000]
SPACINGS = ["leading", "trailing"]


def randn(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


CONDITION = randn(1, 8, *SIZE, seed=0).clamp(-1, 1)
RESTORED = randn(1, 8, *SIZE, seed=1).clamp(-1, 1)
INFRARED = randn(1, 8, *SIZE, seed=2).clamp(-1, 1)
NOISE = Noise(randn(1, 8, *SIZE, seed=3), randn(1, CLASSES, *SIZE, seed=4))
ALPHA_BARS = alphas_cumprod(DiffusionConfig())


def config_of(*, steps=7, spacing="trailing", clip=False, psi="eps", phi="eps", scale=False):
    return dataclasses.replace(
        SMALL_PAPER,
        psi=dataclasses.replace(SMALL_PAPER.psi, prediction=psi),
        phi=dataclasses.replace(SMALL_PAPER.phi, prediction=phi),
        diffusion=DiffusionConfig(steps=steps, spacing=spacing, clip_z0=clip, scale_inputs=scale),
    )


class Oracle:
    """Networks that know the clean latents, weigh as told and say what they were given."""

    def __init__(self, config, w=0.25, state=None):
        self.config, self.w = config, w
        self.state = NOISE.state if state is None else state
        self.asked, self.fused = [], []

    def predict(self, clean, shown, t, kind):
        a, s = coefficients(ALPHA_BARS[t])
        z_t = shown / input_gain(a, self.config.diffusion)
        eps = (z_t - a * clean) / s
        return training_target(clean, eps, torch.tensor(a), torch.tensor(s), kind)

    def denoise(self, condition, z_psi, z_phi, t):
        assert condition is CONDITION
        self.asked.append((t, z_psi, z_phi))
        return (
            self.predict(RESTORED, z_psi, t, self.config.psi.prediction),
            self.predict(INFRARED, z_phi, t, self.config.phi.prediction),
        )

    def fuse(self, psi, phi, z_f, state, t):
        self.fused.append((psi, phi, z_f, state, t))
        return torch.full_like(z_f, self.w), self.state


def run(networks, config, thermal_ids=(), **changes):
    settings = SamplerSettings.of(config, thermal_ids, **changes)
    return sample(networks, CONDITION, NOISE, config, settings)


def steps_of(networks, config, **changes):
    seen = []

    def noted(*outcome):
        seen.append(Step(*outcome))
        return seen[-1]

    with mock.patch.object(sampler, "Step", noted):
        last = run(networks, config, **changes)
    assert seen[-1] is last
    return seen


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


# Perfect networks


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", STEP_COUNTS)
@pytest.mark.parametrize(("psi", "phi"), [("eps", "eps"), ("v", "z0"), ("z0", "eps")])
def test_perfect_networks_recover_the_clean_latents(steps, spacing, psi, phi):
    config = config_of(steps=steps, spacing=spacing, psi=psi, phi=phi)
    seen = steps_of(Oracle(config, w=0.25), config)
    assert len(seen) == steps
    for step in (seen[0], seen[len(seen) // 2], seen[-1]):
        close(step.z0_psi, RESTORED, 1e-5)
        close(step.z0_phi, INFRARED, 1e-5)
        # Eq. 8 is linear, so a constant weight fuses the clean latents by the same weight.
        close(step.z0_fused, 0.25 * RESTORED + 0.75 * INFRARED, 1e-5)


@pytest.mark.parametrize("steps", STEP_COUNTS)
def test_clipping_changes_nothing_for_latents_in_range(steps):
    free, clipped = config_of(steps=steps), config_of(steps=steps, clip=True)
    close(run(Oracle(clipped), clipped).z0_fused, run(Oracle(free), free).z0_fused, 1e-5)


def test_every_stream_starts_from_the_same_noise():
    config = config_of()
    networks = Oracle(config)
    run(networks, config)
    t, z_psi, z_phi = networks.asked[0]
    *_, z_f, state, fused_t = networks.fused[0]
    for latent in (z_psi, z_phi, z_f):
        assert torch.equal(latent, NOISE.latent)
    assert torch.equal(state, NOISE.state)
    assert t == fused_t == 999


@pytest.mark.parametrize("steps", [1, 4, 25])
def test_scaled_inputs_show_the_networks_less_noise_and_change_nothing_else(steps):
    plain, scaled = (config_of(steps=steps, scale=scale) for scale in (False, True))
    plain_networks, scaled_networks = Oracle(plain), Oracle(scaled)
    plain_seen, scaled_seen = (
        steps_of(networks, config)
        for networks, config in ((plain_networks, plain), (scaled_networks, scaled))
    )
    for ours, theirs in zip(scaled_seen, plain_seen, strict=True):
        close(ours.z0_fused, theirs.z0_fused, 1e-5)
    for ours, theirs in zip(scaled_networks.asked, plain_networks.asked, strict=True):
        a, _ = coefficients(ALPHA_BARS[ours[0]])
        close(ours[1], a * theirs[1])
        close(ours[2], a * theirs[2])
    for ours, theirs in zip(scaled_networks.fused, plain_networks.fused, strict=True):
        a, _ = coefficients(ALPHA_BARS[ours[4]])
        for estimate, plain_estimate in zip(ours[:2], theirs[:2], strict=True):
            close(estimate.z0, plain_estimate.z0, 1e-5)
            close(estimate.eps, a * plain_estimate.eps, 1e-5)
        close(ours[2], a * theirs[2], 1e-5)
        close(ours[3], a * theirs[3])


def test_the_latents_between_steps_lie_on_the_diffusion_path():
    config = config_of(steps=4)
    networks = Oracle(config)
    run(networks, config)
    a, s = coefficients(ALPHA_BARS[999])
    eps = (NOISE.latent - a * RESTORED) / s
    for t, z_psi, _ in networks.asked:
        close(z_psi, add_noise(RESTORED, eps, *coefficients(ALPHA_BARS[t])))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_networks_are_asked_at_the_timesteps(spacing):
    config = config_of(steps=25, spacing=spacing)
    networks = Oracle(config)
    seen = steps_of(networks, config)
    last = {"leading": 0, "trailing": 39}[spacing]
    expected = list(range(last + 960, -1, -40))
    assert len(expected) == 25
    assert [t for t, *_ in networks.asked] == expected
    assert [t for *_, t in networks.fused] == expected
    assert [step.t for step in seen] == expected


@pytest.mark.parametrize("spacing", SPACINGS)
def test_few_steps_begin_at_pure_noise_whatever_the_models_spacing(spacing):
    """With leading spacing one step would start at t = 0, and show noise for the picture."""
    config = config_of(steps=25, spacing=spacing)
    for steps in range(1, 25):
        chosen = SamplerSettings.of(config, (), steps=steps).timesteps
        assert (chosen[0], len(chosen)) == (999, steps)
    assert SamplerSettings.of(config, (), steps=4).timesteps == (999, 749, 499, 249)


def test_the_state_goes_from_step_to_step():
    config = config_of(steps=3)

    class Counting(Oracle):
        def fuse(self, psi, phi, z_f, state, t):
            w, _ = super().fuse(psi, phi, z_f, state, t)
            return w, state + 1.0

    networks = Counting(config)
    close(run(networks, config).state, NOISE.state + 3.0)
    close(networks.fused[2][3], NOISE.state + 2.0)


# The weight


@pytest.mark.parametrize("steps", [1, 2, 7, 25])
@pytest.mark.parametrize(("w", "stream"), [(1.0, "z0_psi"), (0.0, "z0_phi")])
@pytest.mark.parametrize("clip", [False, True])
def test_a_weight_of_one_or_zero_follows_one_branch(steps, w, stream, clip):
    config = config_of(steps=steps, clip=clip)
    for step in steps_of(Oracle(config, w=w), config):
        close(step.z0_fused, getattr(step, stream), 1e-5)
        close(step.w_r, torch.full_like(step.w_r, w))


def test_thermal_classes_limit_the_weight():
    config = config_of()
    state = torch.zeros_like(NOISE.state)
    state[:, 0, :, :2] = 1.0  # class 0 on the left
    state[:, 2, :, 2:] = 1.0  # class 2 on the right
    step = run(Oracle(config, w=0.9, state=state), config, thermal_ids=(2, 3), tau=0.3)
    assert step.radiation.shape == (1, 1, *SIZE)
    assert step.radiation[..., :2].eq(0).all()
    assert step.radiation[..., 2:].eq(1).all()
    close(step.w_r[..., :2], torch.full_like(step.w_r[..., :2], 0.9))
    close(step.w_r[..., 2:], torch.full_like(step.w_r[..., 2:], 0.3))
    fused = step.w_r * RESTORED + (1 - step.w_r) * INFRARED
    close(step.z0_fused, fused, 1e-5)


def test_the_map_is_of_the_state_after_the_step():
    config = config_of(steps=1)
    state = torch.zeros_like(NOISE.state)
    state[:, 1] = 1.0
    assert run(Oracle(config, state=state), config, thermal_ids=(1,)).radiation.eq(1).all()


def test_tau_is_the_models_own_unless_given():
    config = config_of()
    assert SamplerSettings.of(config, ()).tau == 0.4
    assert SamplerSettings.of(config, (), tau=0.0).tau == 0.0


# Settings


@pytest.mark.parametrize("changes", [{"steps": 0}, {"steps": 1001}, {"tau": -0.1}, {"tau": 1.1}])
def test_what_is_out_of_range_is_refused(changes):
    with pytest.raises(ConfigError, match="accepted"):
        SamplerSettings.of(config_of(), (), **changes)


def test_no_timesteps_are_an_error():
    settings = SamplerSettings(timesteps=(), tau=0.4, thermal_ids=())
    with pytest.raises(ValueError, match="no timesteps"):
        sample(Oracle(config_of()), CONDITION, NOISE, config_of(), settings)


# diffusers as a second opinion


class Wavy(Oracle):
    """Imperfect, deterministic networks: any function of all that they are given will do."""

    def predict(self, clean, z_t, t, _kind):
        return torch.sin(2.0 * z_t + clean + t / 300.0)


@pytest.mark.no_cover  # other tests run its lines; the tracer would slow the import by half
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("kind", ["eps", "v", "z0"])
@pytest.mark.parametrize(
    ("steps", "spacing"),
    # diffusers takes T / steps as the distance to the next timestep: exact only where it divides T.
    [(1, "trailing"), (4, "trailing"), (25, "trailing"), (40, "leading"), (25, "leading")],
)
def test_each_branch_is_diffusers_ddim(steps, spacing, kind, clip):
    config = config_of(steps=steps, spacing=spacing, clip=clip, psi=kind, phi=kind)
    from diffusers import DDIMScheduler  # seconds that only who runs this pays

    networks = Wavy(config)
    seen = steps_of(networks, config)
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.0120,
        beta_schedule="linear",
        timestep_spacing=spacing,
        prediction_type={"eps": "epsilon", "v": "v_prediction", "z0": "sample"}[kind],
        clip_sample=clip,
    )
    scheduler.alphas_cumprod = torch.tensor(ALPHA_BARS)
    scheduler.set_timesteps(steps)
    z = NOISE.latent
    for index, t in enumerate(scheduler.timesteps.tolist()):
        close(networks.asked[index][1], z)
        result = scheduler.step(
            networks.predict(RESTORED, z, t, kind), t, z, eta=0.0, use_clipped_model_output=clip
        )
        close(seen[index].z0_psi, result.pred_original_sample)
        z = result.prev_sample


# The whole model, from fixed weights


def small_model(config):
    model = MagicFuse.from_config(config).eval()
    fill(model)
    return model


def pictures(model, seed=5, **changes):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand((1, 3, 32, 48), generator=torch.Generator().manual_seed(1))
    noise = model.draw_noise(32, 48, generator)
    encoder_noise = model.draw_encoder_noise(32, 48, generator)
    settings = SamplerSettings.of(model.config, model.labels.thermal_ids(), **changes)
    with torch.no_grad():
        return pictures_of(model, image, noise, settings, encoder_noise)


GOLDEN = {
    "small-paper": {
        "magimg": 0.555960,
        "enhanced": 0.548109,
        "infrared": 0.559130,
        "logits": 433.7001,
        "z0_fused": 25.19730,
        "w_r": 0.181844,
    },
    "small-few-step": {
        "magimg": 0.334318,
        "enhanced": 0.460752,
        "infrared": 0.342699,
        "logits": 0.0517485,
        "z0_fused": 0.680570,
        "w_r": 0.382831,
    },
}
"""Of `fill`'s weights; the parts themselves are compared in test_import_weights.py."""


@pytest.mark.parametrize("config", [SMALL_PAPER, SMALL_FEW_STEP], ids=lambda config: config.name)
def test_golden_sums(config):
    outcome = pictures(small_model(config), steps=3)
    sums = {
        "magimg": outcome.magimg.mean().item(),
        "enhanced": outcome.enhanced.mean().item(),
        "infrared": outcome.infrared.mean().item(),
        "logits": outcome.logits.abs().mean().item(),
        "z0_fused": outcome.step.z0_fused.abs().mean().item(),
        "w_r": outcome.step.w_r.abs().mean().item(),
    }
    print(sums)  # shown when they differ
    assert sums == pytest.approx(GOLDEN[config.name], rel=1e-3)


@pytest.mark.parametrize("config", [SMALL_PAPER, SMALL_FEW_STEP], ids=lambda config: config.name)
def test_shapes_and_ranges(config):
    outcome = pictures(small_model(config), steps=2)
    for picture in (outcome.magimg, outcome.enhanced, outcome.infrared):
        assert picture.shape == (1, 3, 32, 48)
        assert 0.0 <= picture.min() <= picture.max() <= 1.0
    assert outcome.logits.shape == (1, {"mfnet": 9, "drive": 12}[config.labels], 32, 48)


@pytest.mark.parametrize("config", [SMALL_PAPER, SMALL_FEW_STEP], ids=lambda config: config.name)
def test_the_same_seed_gives_the_same_frame(config):
    model = small_model(config)
    first, again, other = (pictures(model, seed=seed, steps=2) for seed in (5, 5, 6))
    for name in ("magimg", "enhanced", "infrared", "logits"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert not torch.allclose(first.magimg, other.magimg)


def test_samples_of_a_batch_are_drawn_and_fused_apart():
    model = small_model(SMALL_FEW_STEP)
    image = torch.rand((2, 3, 16, 24), generator=torch.Generator().manual_seed(1))
    noise = model.draw_noise(16, 24, torch.Generator().manual_seed(2), batch=2)
    settings = SamplerSettings.of(model.config, (1, 2))
    with torch.no_grad():
        both = pictures_of(model, image, noise, settings)
        for index in range(2):
            part = slice(index, index + 1)
            alone = pictures_of(
                model, image[part], Noise(noise.latent[part], noise.state[part]), settings
            )
            torch.testing.assert_close(both.magimg[part], alone.magimg, atol=1e-4, rtol=1e-4)


class Growing(Oracle):
    """S as it may be over many steps, for which none is trained: its state grows by half a step."""

    def fuse(self, psi, phi, z_f, state, t):
        w, _ = super().fuse(psi, phi, z_f, state, t)
        return w, 1.5 * state.float() + 0.1


@pytest.mark.parametrize("steps", [200, 1000])
def test_a_state_that_grows_stays_finite(steps):
    config = config_of(steps=steps, clip=True)
    state = run(Growing(config), config, thermal_ids=(1,)).state
    assert state.abs().max() == STATE_LIMIT  # 1.5 to the power of 219 is more than a float32 holds


def test_the_limit_of_the_state_is_beyond_what_is_trained():
    config = config_of(steps=3)
    state = torch.full_like(NOISE.state, 0.999 * STATE_LIMIT)
    assert torch.equal(run(Oracle(config, state=state), config).state, state)
