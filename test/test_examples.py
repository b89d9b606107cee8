"""The examples in the docstrings of the public entry points run, and print what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

MODULES = (
    "magicfuse_ros.bags.reader",
    "magicfuse_ros.evaluation.calibration",
    "magicfuse_ros.evaluation.fusion_metrics",
    "magicfuse_ros.evaluation.metrics",
    "magicfuse_ros.messages",
    "magicfuse_ros.model.magicfuse",
    "magicfuse_ros.model.sampler",
    "magicfuse_ros.ros.images.bit_depth",
    "magicfuse_ros.ros.images.codec",
    "magicfuse_ros.runtime.engine",
    "magicfuse_ros.sources.pictures",
    "magicfuse_ros.sources.source",
    "magicfuse_ros.training.datasets.layouts",
    "magicfuse_ros.training.degradation_mixes",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    results = doctest.testmod(importlib.import_module(name))

    assert results.attempted > 0, "a module in the list has an example"
    assert results.failed == 0
