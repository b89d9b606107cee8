"""F and S, and Eq. 8 and 11 in cases that can be worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_models import SMALL_FEW_STEP, SMALL_PAPER, fill
from torch.profiler import ProfilerActivity, profile

from magicfuse_ros.model.config import FusionConfig
from magicfuse_ros.model.fusion import (
    Fusion,
    SelfAttention,
    _resized,
    area_averaged,
    fused_noise,
    modulated_weight,
    radiation_category_map,
    time_embedding,
)
from magicfuse_ros.model.sizes import TINY

REAL = st.floats(-5.0, 5.0)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(size, classes, batch=1):
    latents = [noise(batch, 8, *size, seed=seed) for seed in range(5)]
    return [*latents, noise(batch, classes, *size, seed=9), torch.tensor([480])]


def filled(config, classes=3):
    network = Fusion(config, 8, classes).eval()
    fill(network)
    return network


@settings(deadline=None)
@given(st.integers(1, 17), st.integers(1, 17), st.sampled_from([1, 2, 4]))
def test_a_coarser_scale_holds_the_means_of_what_it_covers(height, width, scale):
    x = noise(1, 2, height, width)
    size = (-(-height // scale), -(-width // scale))
    means = torch.nn.functional.adaptive_avg_pool2d(x, size)
    torch.testing.assert_close(_resized(x, size), means, rtol=0.0, atol=1e-6)


@settings(deadline=None)
@given(sizes=st.tuples(*[st.integers(1, 40)] * 4), seed=st.integers(0, 9))
def test_shrinking_by_matrix_products_is_adaptive_average_pooling(sizes, seed):
    height, width, new_height, new_width = sizes
    x = noise(2, 3, height, width, seed=seed)
    size = min(new_height, height), min(new_width, width)
    wanted = torch.nn.functional.adaptive_avg_pool2d(x, size)
    torch.testing.assert_close(area_averaged(x, size), wanted, rtol=0.0, atol=1e-6)


def test_no_operator_that_torch_tensorrt_lowers_wrongly_is_left_in_fusion():
    network = filled(TINY.fusion)
    program = torch.export.export(network, tuple(inputs((60, 80), 3)))  # 30 rows → 15 → 8
    operators = {str(node.target) for node in program.run_decompositions().graph.nodes}
    assert "aten.avg_pool2d.default" in operators
    assert not [each for each in operators if "adaptive" in each]


# Eq. 11: the radiation category map and the modulated weight


def test_the_map_marks_the_thermal_classes():
    state = torch.tensor([[3.0, 0.0, 0.0, 1.0], [0.0, 3.0, 0.0, 1.5], [0.0, 0.0, 3.0, 1.2]])
    state = state.reshape(1, 3, 2, 2)
    assert radiation_category_map(state, (1,)).flatten().tolist() == [0, 1, 0, 1]
    assert radiation_category_map(state, (0, 2)).flatten().tolist() == [1, 0, 1, 0]
    assert radiation_category_map(state, ()).flatten().tolist() == [0, 0, 0, 0]
    assert radiation_category_map(state, (0, 1, 2)).flatten().tolist() == [1, 1, 1, 1]


def test_the_map_has_one_channel_and_the_type_of_the_state():
    radiation = radiation_category_map(noise(2, 5, 3, 4).double(), (1, 2))
    assert radiation.shape == (2, 1, 3, 4)
    assert radiation.dtype == torch.float64


@settings(deadline=None)
@given(w=REAL, tau=st.floats(0.0, 1.0), thermal=st.booleans())
def test_the_weight_is_limited_inside_thermal_classes_only(w, tau, thermal):
    w_r = modulated_weight(
        torch.tensor(w, dtype=torch.float64), torch.tensor(float(thermal)).double(), tau
    ).item()
    assert w_r == (min(w, tau) if thermal else w)


def test_one_map_modulates_every_channel():
    w = torch.full((1, 8, 2, 2), 0.9)
    w[:, 3] = -0.2
    radiation = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    w_r = modulated_weight(w, radiation, 0.4)
    expected = torch.tensor([[0.4, 0.9], [0.9, 0.4]])
    for channel in range(8):
        torch.testing.assert_close(
            w_r[0, channel], torch.full((2, 2), -0.2) if channel == 3 else expected
        )


# Eq. 8: the fused noise


@settings(deadline=None)
@given(w=REAL, psi=REAL, phi=REAL)
def test_the_fused_noise_lies_on_the_line_between_both(w, psi, phi):
    w, psi, phi = (torch.tensor(value, dtype=torch.float64) for value in (w, psi, phi))
    fused = fused_noise(w, psi, phi)
    torch.testing.assert_close(fused, phi + w * (psi - phi), atol=1e-12, rtol=1e-12)


def test_weights_of_one_and_zero_choose_a_branch():
    psi, phi = noise(1, 8, 2, 2), noise(1, 8, 2, 2, seed=1)
    assert torch.equal(fused_noise(torch.ones(1, 8, 2, 2), psi, phi), psi)
    assert torch.equal(fused_noise(torch.zeros(1, 8, 2, 2), psi, phi), phi)


# The networks


def test_the_time_embedding():
    embedding = time_embedding(torch.tensor([0, 960]), 96)
    assert embedding.shape == (2, 96)
    assert embedding[0].tolist() == [0.0] * 48 + [1.0] * 48
    # The frequencies fall from 1 to 1/10000 in 47 equal ratios.
    for index in (0, 1, 20, 47):
        angle = torch.tensor(960.0 * 10000.0 ** (-index / 47), dtype=torch.float64)
        torch.testing.assert_close(embedding[1, index].double(), angle.sin(), atol=2e-4, rtol=0)
        torch.testing.assert_close(
            embedding[1, 48 + index].double(), angle.cos(), atol=2e-4, rtol=0
        )


CONFIGS = {
    "paper": SMALL_PAPER.fusion,
    "few-step": SMALL_FEW_STEP.fusion,
    "tiny": TINY.fusion,
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", [(8, 12), (6, 10)])
def test_shapes(name, size):
    network = filled(CONFIGS[name])
    with torch.no_grad():
        w, state = network(*inputs(size, 3, batch=2))
    assert w.shape == (2, 8, *size)
    assert state.shape == (2, 3, *size)
    assert w.isfinite().all()
    assert state.isfinite().all()


@pytest.mark.parametrize("name", ["paper", "few-step"])
def test_everything_given_matters(name):
    network = filled(CONFIGS[name])
    given_inputs = inputs((4, 6), 3)
    with torch.no_grad():
        base_w, base_state = network(*given_inputs)
        for index in range(len(given_inputs)):
            changed = list(given_inputs)
            changed[index] = (changed[index] * 2 + 1).to(changed[index].dtype)
            w, state = network(*changed)
            assert not torch.allclose(state, base_state), index
            # S reads F, F does not read S.
            assert torch.equal(w, base_w) == (index == 5), index


def test_w_is_not_squashed():
    network = filled(CONFIGS["paper"])
    with torch.no_grad():
        network.estimate[-1].bias.fill_(7.0)
        w, _ = network(*inputs((4, 4), 3))
    assert w.max() > 1.0


def test_the_state_passes_through_ten_layers_in_the_paper():
    with torch.device("meta"):
        network = Fusion(FusionConfig(), 8, 9)
    assert len(network.segproj) == 10
    for layer in network.segproj:
        assert layer.weight.shape == (9, 96 + 9, 3, 3)


def test_a_layer_that_returns_to_a_scale_gets_that_scales_features():
    config = dataclasses.replace(TINY.fusion, widths=(8, 16, 24, 16, 8), norm_groups=8)
    with torch.device("meta"):
        network = Fusion(config, 8, 12)
    inputs_of = [block.res1.conv1.in_channels for block in network.blocks]
    assert inputs_of == [8, 8, 16, 24 + 16, 16 + 8]


def test_attention_is_softmax_attention_with_a_residual():
    attention = SelfAttention(8, 4).eval()
    fill(attention)
    x = noise(2, 8, 3, 5)
    with torch.no_grad():
        normed = attention.norm(x)
        q, k, v = (layer(normed).flatten(2) for layer in (attention.q, attention.k, attention.v))
        weights = (torch.einsum("bci,bcj->bij", q, k) / 8**0.5).softmax(dim=2)
        mixed = torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape)
        torch.testing.assert_close(attention(x), x + attention.out(mixed))


def test_attention_is_not_materialised():
    attention, x = SelfAttention(8, 4).eval(), noise(1, 8, 60, 80)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
        attention(x)
    largest = max(event.cpu_memory_usage for event in log.events())
    assert 0 < largest < 4 * (60 * 80) ** 2 / 10
