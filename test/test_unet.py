"""Our U-Net is latent diffusion's: the same tensors and numbers as diffusers' implementation.

diffusers takes seconds to import: only the tests that ask it do, not every process that collects.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.release_layout import release_states
from support.small_models import fill

from magicfuse_ros.model.denoiser import Denoiser
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.release import names_of
from magicfuse_ros.model.sizes import PAPER, TINY

# Other tests run these lines; the tracer would slow diffusers and the export by half.
pytestmark = pytest.mark.no_cover

ALL = {
    f"{size.name}-{part}": getattr(size, part) for size in (PAPER, TINY) for part in ("psi", "phi")
}


def theirs(config, channels=8):
    """Build diffusers' network of the same layout."""
    from diffusers import UNet2DConditionModel

    channels *= config.patch**2
    widths = tuple(config.width * each for each in config.multipliers)
    attends = [level in config.attention_levels for level in range(len(widths))]
    return UNet2DConditionModel(
        in_channels=2 * channels,
        out_channels=channels * (1 + config.condition_skip),
        block_out_channels=widths,
        down_block_types=tuple(
            "CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attends
        ),
        up_block_types=tuple(
            "CrossAttnUpBlock2D" if each else "UpBlock2D" for each in attends[::-1]
        ),
        layers_per_block=config.blocks,
        # Without a context both attentions attend to their own input.
        cross_attention_dim=widths,
        attention_head_dim=config.heads,  # a misnomer of theirs: the number of heads
        norm_num_groups=config.norm_groups,
    )


@pytest.mark.parametrize("config", ALL.values(), ids=ALL)
def test_its_tensors_are_those_of_diffusers_in_name_and_shape(config):
    with torch.device("meta"):
        ours, other = Denoiser(config, 8).unet, theirs(config)
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in other.state_dict().items()}
    published = {PAPER.psi: 39_652_104, PAPER.phi: 517_670_920}
    if config in published:
        assert sum(shape.numel() for shape in shapes.values()) == published[config]


def narrow(config):
    """Return the same layout with few channels, which is what a comparison of numbers needs."""
    return dataclasses.replace(config, width=4 * config.heads, norm_groups=4)


@pytest.mark.parametrize("size", [(8, 16), (7, 9), (1, 3), (13, 6)], ids=str)
@pytest.mark.parametrize("config", ALL.values(), ids=ALL)
def test_it_gives_what_diffusers_gives(config, size):
    config = narrow(config)
    ours, other = Denoiser(config, 2).unet.eval(), theirs(config, 2).eval()
    fill(ours)
    other.load_state_dict(ours.state_dict())
    x = torch.randn((2, 4 * config.patch**2, *size), generator=torch.Generator().manual_seed(0))
    t = torch.tensor([731, 4])
    with torch.no_grad():
        expected = other(x, t, encoder_hidden_states=None, return_dict=False)[0]
        torch.testing.assert_close(ours(x, t), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("part", ["psi", "phi"])
def test_the_authors_names_become_what_diffusers_makes_of_them(part):
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    with torch.device("meta"):
        model = MagicFuse.from_config(PAPER)
    released = release_states(PAPER, model)[part]
    config = getattr(PAPER, part)
    # Their conversion only moves values from key to key, so it is given the keys themselves.
    moved = convert_ldm_unet_checkpoint(
        {f"model.diffusion_model.{name}": name for name in released},
        {"layers_per_block": config.blocks},
    )
    expected = {name: f"unet.{ours}" for ours, name in moved.items() if name is not None}
    assert names_of(part, PAPER, getattr(model, part)) == expected


def test_it_can_be_exported():
    config = narrow(TINY.psi)
    network = Denoiser(config, 2).eval()
    inputs = torch.zeros(1, 2, 6, 10), torch.ones(1, 2, 6, 10), torch.tensor([999])
    with torch.no_grad():
        exported = torch.export.export(network, inputs).module()
        torch.testing.assert_close(exported(*inputs), network(*inputs))
