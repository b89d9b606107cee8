"""Fuzz one target with Atheris: `python test/fuzz/run.py TARGET [libFuzzer options] [CORPUS]`.

Targets are the modules of test/fuzz/targets. Their seeds are always read; what is found on the
way goes to CORPUS (build/fuzz/TARGET). An input that fails is written to build/fuzz as
TARGET-crash-...: once it is understood, copy it to the target's seeds, which
test/test_fuzz_seeds.py replays.
"""

from __future__ import annotations

import importlib
import os
import resource
import sys
from pathlib import Path

import atheris

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OUTPUT = ROOT / "build" / "fuzz"
BAGS = ("mcap", "sqlite", "metadata")
HEADROOM = 1 << 30
"""Bytes of address space that an input may ask for beyond what the process has at its start.

A quarter of it may be used.
"""


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    name, *rest = sys.argv[1:]
    sys.path[:0] = [str(ROOT), str(HERE.parent)]
    # Branches of these packages guide the fuzzer. Its own output is enough.
    os.environ["OPENCV_LOG_LEVEL"] = "SILENT"
    watched = ["magicfuse_ros", *(["rosbags"] if name in BAGS else [])]
    with atheris.instrument_imports(include=watched):
        target = importlib.import_module(f"fuzz.targets.{name}")
    for owner, function in getattr(target, "WATCHED", ()):
        setattr(owner, function, atheris.instrument_func(getattr(owner, function)))
    options = [word for word in rest if word.startswith("-")]
    folders = [word for word in rest if not word.startswith("-")] or [str(OUTPUT / name)]
    for folder in folders:
        Path(folder).mkdir(parents=True, exist_ok=True)
    defaults = [
        f"-max_len={getattr(target, 'MAX_LEN', 1024)}",
        "-timeout=30",
        "-print_final_stats=1",
        f"-artifact_prefix={OUTPUT / name}-",
    ]
    if (words := HERE / "words" / f"{name}.dict").exists():
        defaults.append(f"-dict={words}")
    target.check(b"")  # whatever is loaded or set up at first use
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    seeds = HERE / "seeds" / name

    def check(data: bytes) -> None:
        before = peak_bytes()  # the fuzzer's own memory grows with every input
        target.check(data)
        # OpenCV calls a picture corrupt for which there was no memory: what it got shows here.
        assert peak_bytes() < before + HEADROOM // 4

    atheris.Setup([sys.argv[0], *defaults, *options, *folders, str(seeds)], check)
    atheris.Fuzz()


main()
