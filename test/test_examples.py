"""The examples in the docstrings of the public entry points run, and print what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = (
    "magicfuse_ros.evaluation.metrics",
    "magicfuse_ros.ros.images.bit_depth",
    "magicfuse_ros.ros.images.codec",
    "magicfuse_ros.sources.pictures",
    "magicfuse_ros.sources.source",
    "magicfuse_ros.sources.videos",
    "magicfuse_ros.training.datasets.layouts",
    "magicfuse_ros.training.degradation_mixes",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    results = doctest.testmod(importlib.import_module(name))

    assert results.attempted > 0, "a module in the list has an example"
    assert results.failed == 0
