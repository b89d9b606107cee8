"""Ψ and Φ: any size, any timestep, what `patch` and `condition_skip` do."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from support.small_models import SMALL_FEW_STEP, SMALL_PAPER, fill
from torch.profiler import ProfilerActivity, profile

from magicfuse_ros.model.config import DenoiserConfig
from magicfuse_ros.model.denoiser import Denoiser


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(config, channels=8):
    network = Denoiser(config, channels).eval()
    fill(network)
    return network


PAPER_LIKE = dataclasses.replace(SMALL_PAPER.psi, width=8)


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (PAPER_LIKE, (8, 16)),
        (PAPER_LIKE, (7, 9)),
        (PAPER_LIKE, (1, 3)),
        (SMALL_FEW_STEP.psi, (6, 10)),
        (SMALL_FEW_STEP.phi, (10, 14)),
    ],
)
def test_the_output_is_as_large_as_the_latent(config, size):
    network = filled(config)
    with torch.no_grad():
        out = network(noise(2, 8, *size), noise(2, 8, *size, seed=1), torch.tensor([500, 3]))
    assert out.shape == (2, 8, *size)
    assert out.isfinite().all()


@pytest.mark.parametrize("config", [SMALL_FEW_STEP.psi, SMALL_FEW_STEP.phi])
def test_everything_given_matters(config):
    network = filled(config)
    condition, z_t, t = noise(1, 8, 4, 4), noise(1, 8, 4, 4, seed=1), torch.tensor([500])
    with torch.no_grad():
        base = network(condition, z_t, t)
        assert torch.equal(base, network(condition, z_t, t))
        assert not torch.allclose(base, network(condition + 0.5, z_t, t))
        assert not torch.allclose(base, network(condition, z_t + 0.5, t))
        assert not torch.allclose(base, network(condition, z_t, t - 300))


def test_one_timestep_serves_a_batch_in_any_number_type():
    network = filled(SMALL_FEW_STEP.psi)
    condition, z_t = noise(2, 8, 4, 4), noise(2, 8, 4, 4, seed=1)
    with torch.no_grad():
        one = network(condition, z_t, torch.tensor([749]))
        each = network(condition, z_t, torch.tensor([749, 749]))
        real = network(condition, z_t, torch.tensor([749.0]))
    torch.testing.assert_close(one, each)
    torch.testing.assert_close(one, real)


def test_samples_of_a_batch_do_not_mix():
    network = filled(PAPER_LIKE)
    condition, z_t, t = noise(2, 8, 8, 8), noise(2, 8, 8, 8, seed=1), torch.tensor([960, 0])
    with torch.no_grad():
        both = network(condition, z_t, t)
        for index in range(2):
            part = slice(index, index + 1)
            torch.testing.assert_close(both[part], network(condition[part], z_t[part], t[part]))


@pytest.mark.parametrize(
    ("log_gain", "gain"), [(0.0, 1.0), (0.5, math.exp(0.5)), (9.0, math.exp(4.0))]
)
def test_the_condition_skip_scales_and_shifts_the_condition(log_gain, gain):
    network = filled(SMALL_FEW_STEP.psi)
    condition, z_t = noise(1, 8, 4, 6), noise(1, 8, 4, 6, seed=1)
    with torch.no_grad():
        last = network.unet.conv_out
        last.weight.zero_()
        last.bias[: last.out_channels // 2] = log_gain
        last.bias[last.out_channels // 2 :] = 0.25
        out = network(condition, z_t, torch.tensor([999]))
    torch.testing.assert_close(out, gain * condition + 0.25)


def test_attention_stands_where_the_configuration_says():
    def transformers(levels):
        network = Denoiser(DenoiserConfig(width=32, heads=4, attention_levels=levels), 8)
        return {
            name.split(".attentions.")[0].removeprefix("unet.")
            for name, _ in network.named_modules()
            if ".attentions." in name
        }

    with torch.device("meta"):
        assert transformers(()) == {"mid_block"}
        assert transformers((2, 3)) == {
            *("down_blocks.2", "down_blocks.3", "mid_block", "up_blocks.0", "up_blocks.1"),
        }


def test_both_attentions_of_a_transformer_look_at_its_own_input():
    with torch.device("meta"):
        network = Denoiser(PAPER_LIKE, 8)
    blocks = [m for m in network.modules() if type(m).__name__ == "TransformerBlock"]
    assert blocks
    for block in blocks:
        for attention in (block.attn1, block.attn2):
            assert attention.heads == PAPER_LIKE.heads
            assert attention.to_k.in_features == attention.to_q.in_features


def test_attention_is_not_materialised():
    config = DenoiserConfig(
        width=4, multipliers=(1,), blocks=1, attention_levels=(0,), heads=1, norm_groups=1
    )
    network, positions = filled(config), 40 * 60
    arguments = (noise(1, 8, 40, 60), noise(1, 8, 40, 60), torch.tensor([5]))
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
        network(*arguments)
    largest = max(event.self_cpu_memory_usage for event in log.events())
    assert 0 < largest < 4 * positions**2 / 10
