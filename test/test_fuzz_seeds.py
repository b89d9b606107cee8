"""The seeds that the fuzzers keep go through their targets again, and so do other bytes."""

import importlib
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

FUZZ = Path(__file__).parent / "fuzz"
TARGETS = sorted(path.stem for path in (FUZZ / "targets").glob("*.py"))
MOST_MEMORY = 32 << 20
"""Bytes; the seeds are small, but some claim to be gigabytes."""


def test_every_target_has_seeds_and_every_seed_a_target():
    assert sorted(path.name for path in (FUZZ / "seeds").iterdir()) == TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_seeds(name):
    target = importlib.import_module(f"fuzz.targets.{name}")
    target.check(b"")  # whatever is loaded at first use
    tracemalloc.start()
    try:
        for seed in sorted((FUZZ / "seeds" / name).iterdir()):
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            target.check(seed.read_bytes())
            assert tracemalloc.get_traced_memory()[1] - before < MOST_MEMORY, seed.name
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=120))
def test_any_bytes(name, data):
    importlib.import_module(f"fuzz.targets.{name}").check(data)
