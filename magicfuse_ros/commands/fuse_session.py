"""What `magicfuse fuse` does: every picture through the engine, and a summary."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from pathlib import Path

from magicfuse_ros.commands.fuse_files import FileError, Target, open_source
from magicfuse_ros.runtime.contract import EXTRAS, EngineSettings, FuseResult, UInt8
from magicfuse_ros.runtime.engine import FuseEngine, load_engine

_REPORT_EVERY_S = 5.0


def fuse_all(path: Path, target: Path, outputs: tuple[str, ...], settings: EngineSettings) -> int:
    """Fuse every picture of `path` into `target`, and print a summary.

    Returns
    -------
    int
        How many pictures could not be read and were left out; at least one could.

    Raises
    ------
    FileError
        Nothing can be read, or the results cannot be written.
    EngineError
        The engine cannot be had, or no backend can fuse a picture.
    """
    source = open_source(path)
    extras = frozenset(outputs) & frozenset(EXTRAS)
    with (
        Target(target, source, path, outputs) as files,
        closing(load_engine(settings, _say)) as engine,
    ):
        if not engine.trained:
            _say("WARNING: the weights of this model are untrained, its results mean nothing")
        if engine.steps_warning:
            _say(f"WARNING: {engine.steps_warning}")
        unreadable, fused, fuse_ms = [], 0, 0.0
        started = told = time.monotonic()
        for picture in source.pictures():
            if picture.frame is None:
                _say(f"left out, not readable as an image: {picture.name}")
                unreadable.append(picture.name)
                continue
            result = _fuse(engine, picture.frame, extras)
            for output in outputs:
                files.write(output, picture.name, _select(result, output, engine))
            fused += 1
            fuse_ms += sum(result.stage_ms.values())
            if time.monotonic() - told >= _REPORT_EVERY_S:
                told = time.monotonic()
                _say(f"{fused} of {source.count or '?'}, {fuse_ms / fused:.0f} ms each")
        if fused == 0:
            raise FileError(f"none of the {len(unreadable)} images in {path} can be read")
        took = time.monotonic() - started
    print(
        f"{fused} fused into {target} in {took:.1f} s, {fuse_ms / fused:.0f} ms each on "
        f"{engine.backend_name}" + (f"; {len(unreadable)} left out" if unreadable else "")
    )
    return len(unreadable)


def _fuse(engine: FuseEngine, frame: UInt8, extras: frozenset[str]) -> FuseResult:
    while True:
        try:
            return engine.fuse(frame, extras)
        except Exception as error:
            failed = engine.backend_name
            if engine.fall_back(_say) is None:
                raise
            _say(f"{failed} failed ({error}); going on with {engine.backend_name}")


def _select(result: FuseResult, output: str, engine: FuseEngine) -> UInt8:
    if output == "color":
        from magicfuse_ros.ros.outputs import colorize

        return colorize(result.mask, result.magimg, engine.labels.palette())
    picture: UInt8 = getattr(result, output)
    return picture


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
