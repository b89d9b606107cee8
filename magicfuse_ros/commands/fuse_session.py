"""Runs `magicfuse fuse`: fuses every picture, and prints a summary."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

from magicfuse_ros.commands.fuse_files import Target
from magicfuse_ros.commands.fuse_logs import OUTPUT_STREAMS, check_logs, open_logs
from magicfuse_ros.commands.progress_line import say
from magicfuse_ros.runtime.class_colors import colorize
from magicfuse_ros.runtime.contract import EXTRAS, EngineSettings, FuseResult, UInt8
from magicfuse_ros.runtime.engine import FuseEngine, load_engine
from magicfuse_ros.sources.frame import SourceError
from magicfuse_ros.sources.source import open_source

_REPORT_EVERY_S = 5.0


def fuse_all(
    path: Path,
    target: Path,
    outputs: tuple[str, ...],
    settings: EngineSettings,
    *,
    overwrite: bool = False,
    logs: Mapping[str, Path] | None = None,
) -> int:
    """Fuse every picture of `path` into `target`, and print a summary.

    For `outputs` and `overwrite` see `Target`; `logs` are files for all streams, by their kind (see
    `fuse_logs`). Returns how many pictures could not be read and were left out; at least one was
    fused.

    Raises SourceError if no picture can be read. Raises OutputError if the results cannot be
    written; where possible, this is found before the model is loaded. Raises EngineError if the
    engine cannot be loaded, or no backend can fuse a picture.
    """
    source = open_source(path)
    logs = logs or {}
    check_logs(logs, overwrite=overwrite)
    extras = frozenset(EXTRAS) & frozenset(OUTPUT_STREAMS if logs else outputs)
    with (
        Target(target, source, path, outputs, overwrite=overwrite) as files,
        closing(load_engine(settings, say)) as engine,
        open_logs(logs, engine.labels) as log,
    ):
        if not engine.trained:
            say("WARNING: the weights of this model are untrained, its results mean nothing")
        if engine.steps_warning:
            say(f"WARNING: {engine.steps_warning}")
        left_out, fused, fuse_ms = 0, 0, 0.0
        started = reported_at = time.monotonic()
        for frame in source.frames():
            if frame.rgb is None:
                say(f"left out: {frame.fault}")
                left_out += 1
                continue
            result = _fuse(engine, frame.rgb, extras)
            for output in outputs:
                files.write(output, frame, _select(result, output, engine))
            log(frame, {name: partial(_select, result, name, engine) for name in OUTPUT_STREAMS})
            fused += 1
            fuse_ms += sum(result.stage_ms.values())
            if time.monotonic() - reported_at >= _REPORT_EVERY_S:
                reported_at = time.monotonic()
                say(f"{fused} of {source.count or '?'}, {fuse_ms / fused:.0f} ms each")
        if fused == 0:
            raise SourceError(f"none of the {left_out} pictures in {path} can be read")
        files.close()
        took = time.monotonic() - started
    print(
        f"{fused} fused into {target} in {took:.1f} s, {fuse_ms / fused:.0f} ms each on "
        f"{engine.backend_name}" + (f"; {left_out} left out" if left_out else "")
    )
    for made in logs.values():
        print(f"all streams are in {made}")
    return left_out


def _fuse(engine: FuseEngine, frame: UInt8, extras: frozenset[str]) -> FuseResult:
    while True:
        try:
            return engine.fuse(frame, extras)
        except Exception as error:
            failed = engine.backend_name
            if engine.fall_back(say) is None:
                raise
            say(f"{failed} failed ({error}); going on with {engine.backend_name}")


def _select(result: FuseResult, output: str, engine: FuseEngine) -> UInt8:
    if output == "color":
        return colorize(result.mask, result.magimg, engine.labels.palette())
    picture: UInt8 = getattr(result, output)
    return picture
