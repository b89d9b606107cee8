"""The paper size has exactly the parameters of the published model; counted without memory."""

from __future__ import annotations

import pytest
import torch

from magicfuse_ros.model.checkpoint import PARTS
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.sizes import BASE, PAPER, TINY

PUBLISHED = {
    "encoder": 220_968,
    "decoder": 188_163,
    "psi": 39_652_104,
    "phi": 517_670_920,
    "fusion": 2_742_148,
}


def counts(config):
    with torch.device("meta"):
        model = MagicFuse.from_config(config)
    return {
        part: sum(parameter.numel() for parameter in getattr(model, part).parameters())
        for part in PARTS
    }


@pytest.fixture(scope="module")
def paper():
    return counts(PAPER)


@pytest.mark.parametrize("part", PARTS)
def test_the_paper_size_is_the_published_model(paper, part):
    assert paper[part] == PUBLISHED[part]


def test_the_base_size_fits_80_mb_in_16_bits_with_most_of_it_in_phi_s_and_r():
    with torch.device("meta"):
        model = MagicFuse.from_config(BASE)
    of = {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in model.parts}
    assert 2 * sum(of.values()) < 80e6
    assert of["phi"] + of["fusion"] + of["refiner"] > 0.8 * sum(of.values())


def test_the_tiny_size_is_embedded():
    tiny = counts(TINY)
    assert 1_000_000 <= tiny["psi"] < tiny["phi"]
    assert round(tiny["phi"], -6) <= 4_000_000
    assert tiny["encoder"] + tiny["decoder"] < PUBLISHED["encoder"] + PUBLISHED["decoder"]
