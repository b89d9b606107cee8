"""The model's configuration: what it refuses, in which words, and its way to JSON and back."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_models import SMALL_FEW_STEP, SMALL_PAPER

from magicfuse_ros.model.config import (
    AutoencoderConfig,
    DenoiserConfig,
    DiffusionConfig,
    FusionConfig,
    MagicFuseConfig,
)
from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.model.sizes import BASE, PAPER, SIZES, TINY


@pytest.mark.parametrize("config", [*SIZES.values(), SMALL_PAPER, SMALL_FEW_STEP])
def test_json_and_back(config):
    assert MagicFuseConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@settings(deadline=None)
@given(
    name=st.text(min_size=1),
    steps=st.integers(1, 1000),
    tau=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**63 - 1),
    sides=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    patch=st.sampled_from([1, 2, 4]),
)
def test_any_accepted_values_survive_json(name, steps, tau, seed, sides, patch):
    config = dataclasses.replace(
        TINY,
        name=name,
        resolution=tuple(96 * side for side in sides),
        psi=dataclasses.replace(TINY.psi, patch=patch),
        diffusion=DiffusionConfig(steps=steps, tau=tau, seed=seed),
    )
    assert MagicFuseConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_paper_size_is_the_papers():
    assert PAPER.autoencoder == AutoencoderConfig(
        latent_channels=8,
        encoder_width=32,
        encoder_blocks=3,
        decoder_width=32,
        decoder_blocks=3,
        patch=1,
        downsamples=2,
        norm="instance",
        noise_channels=32,
    )
    assert (PAPER.psi.width, PAPER.psi.heads, PAPER.psi.attention_levels) == (64, 4, (2, 3))
    assert (PAPER.phi.width, PAPER.phi.heads, PAPER.phi.attention_levels) == (256, 8, (2,))
    for denoiser in (PAPER.psi, PAPER.phi):
        assert denoiser.multipliers == (1, 2, 4, 4)
        assert (denoiser.blocks, denoiser.norm_groups, denoiser.prediction) == (2, 32, "eps")
    assert PAPER.fusion.widths == (96,) * 5
    assert PAPER.fusion.attention == (True,) * 5
    assert PAPER.fusion.taps == 2
    diffusion = PAPER.diffusion
    assert (diffusion.beta_start, diffusion.beta_end, diffusion.train_steps) == (
        0.00085,
        0.0120,
        1000,
    )
    assert (diffusion.steps, diffusion.spacing, diffusion.tau) == (25, "leading", 0.4)
    assert not diffusion.clip_z0
    assert PAPER.labels == "mfnet"


def test_every_size_is_found_by_its_name():
    assert SIZES == {"paper": PAPER, "base": BASE, "tiny": TINY}
    assert not any(config.trained for config in SIZES.values())


def test_images_must_fit_every_patch():
    assert PAPER.multiple_of == 4
    patches = {
        part: dataclasses.replace(getattr(TINY, part), patch=patch)
        for part, patch in (("psi", 2), ("phi", 3), ("fusion", 1))
    }
    config = dataclasses.replace(TINY, resolution=(240, 240), **patches)
    assert config.multiple_of == config.autoencoder.stride * 6


REFUSED = [
    (AutoencoderConfig, {"encoder_width": 0}, "autoencoder.encoder_width is 0"),
    (AutoencoderConfig, {"downsamples": -1}, "autoencoder.downsamples is -1"),
    (AutoencoderConfig, {"downsamples": 10**18}, "accepted: 0 to 16"),
    (AutoencoderConfig, {"norm": "batch"}, "autoencoder.norm is 'batch'; accepted: instance, none"),
    (DenoiserConfig, {"width": 0}, "denoiser.width is 0"),
    (DenoiserConfig, {"width": 64, "multipliers": ()}, "denoiser.multipliers is ()"),
    (DenoiserConfig, {"width": 48}, "is 48; accepted: a multiple of norm_groups (32)"),
    (DenoiserConfig, {"width": 32, "heads": 5}, "of heads (5)"),
    (DenoiserConfig, {"width": 64, "attention_levels": (4,)}, "is 4; accepted: 0 to 3"),
    (
        DenoiserConfig,
        {"width": 64, "prediction": "x"},
        "denoiser.prediction is 'x'; accepted: eps, v, z0",
    ),
    (DenoiserConfig, {"width": 64, "condition_skip": True}, "prediction is 'eps'; accepted: z0"),
    (FusionConfig, {"widths": ()}, "fusion.widths is ()"),
    (FusionConfig, {"scales": (1, 1)}, "fusion.scales is (1, 1); accepted: 5 entries"),
    (FusionConfig, {"attention": ()}, "fusion.attention is (); accepted: 5 entries"),
    (FusionConfig, {"widths": (100,) * 5}, "fusion.widths is 100; accepted: multiples of 32"),
    (FusionConfig, {"scales": (1, 3, 1, 1, 1)}, "fusion.scales is 3; accepted: 1, 2, 4 or 8"),
    (FusionConfig, {"scales": (1, 1, 1, 1, 2)}, "fusion.scales (last) is 2"),
    (FusionConfig, {"taps": 3}, "fusion.taps is 3; accepted: 1 or 2"),
    (FusionConfig, {"norm_groups": 0}, "fusion.norm_groups is 0; accepted: 1 or more"),
    (FusionConfig, {"head_width": 0}, "fusion.head_width is 0"),
    (FusionConfig, {"time_width": 95}, "fusion.time_width is 95; accepted: an even number"),
    (DiffusionConfig, {"train_steps": 0}, "diffusion.train_steps is 0"),
    (DiffusionConfig, {"beta_start": 0.5}, "0 < beta_start <= beta_end < 1"),
    (DiffusionConfig, {"steps": 0}, "steps is 0; accepted: 1 to 1000"),
    (DiffusionConfig, {"steps": 1001}, "steps is 1001; accepted: 1 to 1000"),
    (DiffusionConfig, {"tau": 1.5}, "tau is 1.5; accepted: 0.0 to 1.0"),
    (DiffusionConfig, {"tau": float("nan")}, "tau is nan"),
    (DiffusionConfig, {"spacing": "even"}, "accepted: leading, trailing"),
]


@pytest.mark.parametrize(("kind", "values", "message"), REFUSED)
def test_what_is_out_of_range_is_named(kind, values, message):
    with pytest.raises(ConfigError) as caught:
        kind(**values)
    assert message in str(caught.value)


@pytest.mark.parametrize("resolution", [(0, 480), (642, 480), (640, -480)])
def test_a_resolution_that_does_not_fit_is_refused(resolution):
    with pytest.raises(ConfigError, match=r"resolution is .* of (at least )?4"):
        dataclasses.replace(PAPER, resolution=resolution)


def changed(path, value):
    values = json.loads(json.dumps(PAPER.to_dict()))
    *parents, key = path.split(".")
    place = values
    for parent in parents:
        place = place[parent]
    if value is KeyError:
        del place[key]
    else:
        place[key] = value
    return values


WRONG_JSON = [
    ("psi.wdith", 64, "config.psi has unknown keys ['wdith']; accepted: ['attention_levels'"),
    ("psi.width", KeyError, "config.psi lacks the keys ['width']"),
    ("labels", KeyError, "config lacks the keys ['labels']"),
    ("psi", 3, "config.psi is 3; accepted: a mapping"),
    ("psi.width", "64", "config.psi.width is '64'; accepted: a whole number"),
    ("psi.width", 10**30, "config.psi.width is a number of more than 64 bits"),
    ("psi.width", 64.0, "config.psi.width is 64.0; accepted: a whole number"),
    ("psi.width", True, "config.psi.width is True; accepted: a whole number"),
    ("psi.multipliers", 4, "config.psi.multipliers is 4; accepted: a list"),
    ("psi.multipliers", [1, "2"], "config.psi.multipliers[1] is '2'; accepted: a whole number"),
    ("phi.prediction", "x0", "config.phi.prediction is 'x0'; accepted: eps, v, z0"),
    ("fusion.attention", [1, 1, 1, 1, 1], "config.fusion.attention[0] is 1; accepted: true or"),
    ("resolution", [640], "config.resolution is [640]; accepted: a list of 2"),
    ("resolution", 640, "config.resolution is 640; accepted: a list"),
    ("diffusion.tau", None, "config.diffusion.tau is None; accepted: a number"),
    ("diffusion.tau", 2, "config.diffusion: tau is 2; accepted: 0.0 to 1.0"),
    ("trained", "no", "config.trained is 'no'; accepted: true or false"),
    ("name", 7, "config.name is 7; accepted: text"),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG_JSON)
def test_wrong_json_is_named(path, value, message):
    with pytest.raises(ConfigError) as caught:
        MagicFuseConfig.from_dict(changed(path, value))
    assert message in str(caught.value)


def test_what_is_left_out_of_json_has_its_default():
    values = changed("diffusion.tau", KeyError)
    assert MagicFuseConfig.from_dict(values).diffusion.tau == DiffusionConfig().tau


def test_whole_numbers_pass_for_numbers():
    assert MagicFuseConfig.from_dict(changed("diffusion.tau", 1)).diffusion.tau == 1.0


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAPER.diffusion.steps = 3


@pytest.mark.parametrize(("name", "steps"), [("tiny", 1), ("paper", 25)])
def test_a_model_says_for_which_steps_it_was_trained(name, steps):
    trained = dataclasses.replace(SIZES[name], trained=True)
    assert trained.diffusion.trained_steps == (steps,)
    assert trained.steps_warning(steps) == ""
    for other in (2, 4, 1000):
        warning = trained.steps_warning(other)
        assert f"trained for {steps} step" in warning
        assert f"not for {other}" in warning
    assert SIZES[name].steps_warning(4) == ""  # random weights: worthless with any number


def test_trained_steps_are_the_models_own_where_a_folder_does_not_say():
    assert DiffusionConfig(steps=4).trained_steps == (4,)
    assert DiffusionConfig(steps=2, trained_steps=(1, 2)).trained_steps == (1, 2)
    with pytest.raises(ConfigError, match=r"trained_steps is \(0,\); accepted: numbers from 1 to"):
        DiffusionConfig(trained_steps=(0,))
