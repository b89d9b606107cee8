"""`magicfuse build`: compiles a model ahead of time, so that the node's first start is quick."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING

from magicfuse_ros.commands.arguments import add_model_arguments, given
from magicfuse_ros.commands.exit_status import DONE, FAILED, status_of
from magicfuse_ros.commands.progress_line import say

if TYPE_CHECKING:
    from magicfuse_ros.runtime.contract import EngineSettings

HELP = "compile a model into the artifact cache, ahead of the node's first start"

_DETAILS = """
What is compiled is kept in $XDG_CACHE_HOME/magicfuse/artifacts, or ~/.cache/magicfuse/artifacts,
where the node and the other commands of the same user find it. Everything it depends on is in its
key: weights, input size, versions, and the GPU. A second run checks what is there and compiles
nothing. Beyond 10,000 MB, or the megabytes in the environment variable MAGICFUSE_CACHE_MB, what was
unused for longest is removed, but nothing that a running process uses.

"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments; what is not given is the engine's or the model's own."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _DETAILS
    add_model_arguments(parser)
    parser.add_argument("--backend", help="what runs the networks (default: auto)")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: auto)")


def run(args: argparse.Namespace) -> int:
    """Compile, and print what was done; returns 0 if the backend is ready, 2 if it is not."""
    from magicfuse_ros.runtime.contract import EngineError, EngineSettings

    chosen = given(args, "model", "resolution", "backend", "device")
    try:
        print(_build(EngineSettings(**chosen), args.camera))
    except EngineError as error:
        print(f"magicfuse build: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt as stop:
        print("magicfuse build: stopped; the parts that were ready are kept", file=sys.stderr)
        return status_of(stop)
    return DONE


def _build(settings: EngineSettings, camera: tuple[int, int] | None) -> str:
    """Compile, and return a sentence on what was done."""
    from magicfuse_ros.runtime.contract import EngineError
    from magicfuse_ros.runtime.engine import load_engine

    started = time.monotonic()
    with closing(load_engine(settings, say)) as engine:
        wanted = engine.backend_name
        engine.warm_up(say, camera)
        if engine.backend_name != wanted:
            raise EngineError(f"backend {wanted} failed, as told above; nothing else was wanted")
        took, built = time.monotonic() - started, engine.built
        what = f"model {settings.model!r} on {engine.backend_name}"
        if built:
            return f"{what}: compiled {', '.join(built)} in {took:.0f} s"
        return f"{what}: nothing to compile, all is ready and checked ({took:.0f} s)"
