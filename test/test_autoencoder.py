"""E and D: shapes and ranges in both sizes, the noise as an argument, the layers of the paper."""

from __future__ import annotations

import pytest
import torch
from support.small_models import SMALL_FEW_STEP, SMALL_PAPER, fill
from torch.nn import functional

from magicfuse_ros.model.autoencoder import Decoder, Encoder, fit_linear_path
from magicfuse_ros.model.config import AutoencoderConfig
from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.model.sizes import TINY

CONFIGS = {
    "paper": SMALL_PAPER.autoencoder,
    "few-step": SMALL_FEW_STEP.autoencoder,
    "tiny": TINY.autoencoder,
}


def image(batch, height, width):
    generator = torch.Generator().manual_seed(3)
    return torch.rand((batch, 3, height, width), generator=generator)


def noise_for(config, batch, height, width, seed=4):
    if config.noise_channels == 0:
        return None
    size = (batch, config.noise_channels, height // config.stride, width // config.stride)
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def filled(kind, config):
    network = kind(config).eval()
    fill(network)
    return network


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("height", "width"), [(16, 24), (36, 20)])
def test_shapes_and_ranges(name, height, width):
    config = CONFIGS[name]
    encoder, decoder = filled(Encoder, config), filled(Decoder, config)
    with torch.no_grad():
        latent = encoder(image(2, height, width), noise_for(config, 2, height, width))
        assert latent.shape == (2, 8, height // config.stride, width // config.stride)
        assert latent.dtype == torch.float32
        assert latent.abs().max() <= 1.0
        picture = decoder(latent)
    assert picture.shape == (2, 3, height, width)
    assert picture.min() >= 0.0
    assert picture.max() <= 1.0
    assert latent.std() > 0.0
    assert picture.std() > 0.0


@pytest.mark.parametrize("name", CONFIGS)
def test_a_latent_outside_its_range_is_clipped(name):
    decoder = filled(Decoder, CONFIGS[name])
    latent = torch.randn((1, 8, 6, 8), generator=torch.Generator().manual_seed(1)) * 3
    with torch.no_grad():
        assert torch.equal(decoder(latent), decoder(latent.clamp(-1.0, 1.0)))


def test_the_noise_decides_the_outcome():
    config = CONFIGS["paper"]
    encoder, picture = filled(Encoder, config), image(1, 16, 16)
    with torch.no_grad():
        first = encoder(picture, noise_for(config, 1, 16, 16, seed=1))
        again = encoder(picture, noise_for(config, 1, 16, 16, seed=1))
        other = encoder(picture, noise_for(config, 1, 16, 16, seed=2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_a_missing_noise_is_an_error():
    with pytest.raises(ValueError, match="needs noise of 4 channels"):
        Encoder(CONFIGS["paper"])(image(1, 16, 16))


def test_without_noise_channels_nothing_is_random():
    encoder = filled(Encoder, CONFIGS["few-step"])
    with torch.no_grad():
        assert torch.equal(encoder(image(1, 16, 16)), encoder(image(1, 16, 16)))


def test_the_instance_norms_have_no_parameters():
    names = [name for name, _ in Encoder(CONFIGS["paper"]).named_parameters()]
    shapes = {p.dim() for name, p in Encoder(CONFIGS["paper"]).named_parameters()}
    assert len(names) == 46  # 23 convolutions
    assert shapes == {1, 4}


@pytest.mark.parametrize("part", [Encoder, Decoder])
def test_the_image_reaches_every_parameter(part):
    config = CONFIGS["paper"]
    network = filled(part, config)
    if part is Encoder:
        outcome = network(image(1, 16, 16), noise_for(config, 1, 16, 16))
    else:
        outcome = network(0.5 * torch.randn((1, 8, 4, 4), generator=torch.Generator()))
    (outcome * image(1, *outcome.shape[2:])[:, :1]).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name


def patches_in_a_plane(config, seed):
    """An image whose patches are combinations of eight, as PCA can hold them."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn((8, 3 * config.patch**2), generator=torch.Generator().manual_seed(0))
    shares = torch.rand((2, 8, 10, 12), generator=generator) - 0.5
    patches = 0.5 + 0.03 * torch.einsum("bkhw,kp->bphw", shares, basis)
    return functional.pixel_shuffle(patches, config.patch)


@pytest.mark.parametrize("name", ["tiny", "few-step"])
def test_the_linear_path_starts_as_the_pca_of_the_patches(name):
    config = CONFIGS[name]
    encoder, decoder = filled(Encoder, config), filled(Decoder, config)
    images = [patches_in_a_plane(config, seed) for seed in (1, 2, 3)]
    fit_linear_path(encoder, decoder, images)
    with torch.no_grad():
        latent = encoder(images[0])
        difference = (decoder(latent) - images[0]).abs()
    # Each component is scaled to have 99.9 % of its values in range; the others are clipped.
    assert difference.quantile(0.98) < 1e-4
    assert difference.max() < 0.02
    assert latent.abs().amax(dim=(0, 2, 3)).min() > 0.8


def test_only_a_linear_path_can_be_fitted():
    config = CONFIGS["paper"]
    with pytest.raises(ValueError, match=r"needs autoencoder\.linear_path"):
        fit_linear_path(Encoder(config), Decoder(config), [image(1, 16, 16)])


def test_a_linear_path_needs_one_scale():
    with pytest.raises(ConfigError, match="downsamples with linear_path is 2; accepted: 0"):
        AutoencoderConfig(linear_path=True)
