"""Memory that frames free and take again."""

import os
import platform
import subprocess
import sys

import pytest
from support.small_models import save_few_step

from magicfuse_ros.runtime import engine as engines
from magicfuse_ros.runtime.engine import EngineSettings, load_engine

# In a process of its own: the setting is for all of it.
_SCRIPT = """
import resource
import torch
from magicfuse_ros.runtime.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        latents = [torch.ones(40_000) for _ in range(20)]  # all there at once, then none
        del latents
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
before = faults()
keep_freed_memory()
faults()
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_what_was_freed_is_taken_again_without_asking_the_kernel():
    # What a process begins with; glibc raises both as large blocks are freed, so that how much it
    # gives back would depend on what was imported.
    begin = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    ran = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **begin},
    )
    before, after = map(int, ran.stdout.split())
    assert before > 4_000  # 200 latents of 40 pages each
    assert after < 100


def test_an_engine_asks_for_it_once_it_is_warm(tmp_path, monkeypatch):
    asked, told = [], []
    monkeypatch.setattr(engines, "keep_freed_memory", lambda: asked.append(list(told)))
    settings = EngineSettings(model=str(save_few_step(tmp_path)), backend="eager", device="cpu")
    engine = load_engine(settings, told.append)
    engine.warm_up(told.append)
    assert asked == [told]  # after the last word of what was prepared
    assert any(text.startswith("preparing decoder") for text in told)
    engine.close()
