"""Fuses many bags: one after another, or on Ray with one task for each bag.

A task locks ``OUT.partial`` of its bag, and the finished bag gets its name in one step. So neither
a task that Ray starts again nor a second fleet over the same folder writes a bag twice. A task that
is started again, on whatever machine, goes on where the lost one stopped.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magicfuse_ros.bags.fuse_bag import Summary, fuse_bag
from magicfuse_ros.bags.fuse_engine import Interrupted, LazyEngine
from magicfuse_ros.bags.fuse_plan import FuseOptions
from magicfuse_ros.bags.reader import BagError
from magicfuse_ros.messages import one_line
from magicfuse_ros.runtime.contract import EngineError, EngineSettings, Progress

RETRIES = 3
"""How many times Ray starts a task again whose process or machine was lost."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_POLL_S = 0.5
"""Seconds between two checks of the stop request while tasks run."""


@dataclass(frozen=True)
class Job:
    """One bag to fuse: from `source` to `target`, both absolute."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Row:
    """How one job ended: with a summary, or with an error message."""

    job: Job
    summary: Summary = dataclasses.field(default_factory=Summary)
    error: str = ""

    @property
    def text(self) -> str:
        """The outcome as text for the user."""
        if self.error:
            return f"FAILED: {self.error}"
        return "was done before" if self.summary.already else str(self.summary)


def jobs(sources: Sequence[Path], folder: Path) -> list[Job]:
    """Name the output of each bag after its input; ``a/drive.mcap`` goes to ``folder/drive``.

    It raises `BagError` if no bag is given, two would have the same output, or one is both.
    """
    # `absolute`, not `resolve`: another machine of a fleet may have other symbolic links.
    made = [Job(source.absolute(), folder.absolute() / source.stem) for source in sources]
    several = [target for target, n in Counter(job.target for job in made).items() if n > 1]
    if several:
        from_both = ", ".join(str(job.source) for job in made if job.target == several[0])
        raise BagError(
            f"{from_both} would all go to {several[0]}; fuse them with separate commands into "
            "separate folders"
        )
    if not made:
        raise BagError("no bag is given")
    taken = {job.source for job in made} & {job.target for job in made}
    if taken:
        raise BagError(f"{min(taken)} is an input and would be the output; choose another folder")
    return made


def one_by_one(
    todo: Sequence[Job],
    options: FuseOptions,
    *,
    stop: threading.Event,
    say: Progress,
    progress: Progress,
) -> Iterator[Row]:
    """Fuse bags in this process with one engine, and yield each result as soon as it is done.

    A bag that fails does not stop the others. Setting `stop` raises `Interrupted`.
    """
    with closing(LazyEngine(options.engine, stop, say)) as engine:
        for job in todo:
            yield _outcome(job, options, engine, stop=stop, say=say, progress=progress)


def on_ray(
    todo: Sequence[Job],
    options: FuseOptions,
    address: str,
    *,
    stop: threading.Event,
    progress: Progress,
) -> Iterator[Row]:
    """Fuse bags on a Ray cluster, one task a bag; yield each result as soon as it is done.

    A task takes `options.engine.threads` CPUs, or one if that is 0. It takes one GPU if the cluster
    has any, unless the device is ``cpu``. An `address` of ``local`` starts a cluster on this
    machine, which ends with the work.

    Raises
    ------
    BagError
        Ray is not installed, or the cluster cannot be reached.
    ValueError
        The device names a certain GPU, but Ray has to choose it.
    Interrupted
        `stop` was set.
    """
    engine = dataclasses.replace(options.engine, threads=options.engine.threads or 1)
    if engine.device.startswith("cuda:"):
        raise ValueError(f"device {engine.device!r}: Ray hands out the GPUs, give cuda with --ray")
    ray = _started(address, engine)
    try:
        gpus = 1 if engine.device != "cpu" and ray.cluster_resources().get("GPU") else 0
        task = ray.remote(num_cpus=engine.threads, num_gpus=gpus, max_retries=RETRIES)(_fuse_one)
        wanted = dataclasses.replace(options, engine=engine)
        running = {task.remote(job, wanted): job for job in todo}
        while running:
            if stop.is_set():
                for reference in running:
                    ray.cancel(reference, force=True)  # what is done is kept, as after any kill
                raise Interrupted
            progress(f"{len(todo) - len(running)} of {len(todo)} bags on Ray")
            done, _ = ray.wait(list(running), timeout=_POLL_S)
            for reference in done:
                yield _row(ray, reference, running.pop(reference))
    finally:
        ray.shutdown()


def table(rows: Sequence[Row], count: int) -> str:
    """Return the results as a table: one line for each bag, and their sum."""
    lines = [f"{'fused':>8} {'left out':>9}  bag"]
    for row in sorted(rows, key=lambda row: row.job.source):
        note = f": {row.text}" if row.error or row.summary.already else ""
        lines.append(
            f"{row.summary.fused:8d} {row.summary.left_out:9d}  {row.job.source.name}{note}"
        )
    failed = sum(bool(row.error) for row in rows)
    lines.append(
        f"{sum(row.summary.fused for row in rows):8d} "
        f"{sum(row.summary.left_out for row in rows):9d}  {len(rows) - failed} of {count} bags"
    )
    return "\n".join(lines)


def _fuse_one(job: Job, options: FuseOptions) -> Row:
    """Run one job in a Ray worker; raise only what Ray's retry may mend."""
    never = threading.Event()
    with closing(LazyEngine(options.engine, never, lambda _text: None)) as engine:
        return _outcome(job, options, engine, stop=never)


def _outcome(job: Job, options: FuseOptions, engine: LazyEngine, **calls: Any) -> Row:
    try:
        return Row(job, fuse_bag(job.source, job.target, options, engine, **calls))
    except (BagError, EngineError, ValueError) as error:
        return Row(job, error=str(error))


def _row(ray: Any, reference: Any, job: Job) -> Row:
    try:
        row: Row = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        return Row(job, error=_short(error.cause or error))  # it would raise the same again
    except ray.exceptions.RayError as error:
        lost = f"Ray lost it {RETRIES + 1} times, the same command goes on"
        return Row(job, error=f"{lost}: {_short(error)}")
    return row


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)[:300]}"


def _started(address: str, engine: EngineSettings) -> Any:
    """Connect to the cluster, and return the module ray."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
    ours = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        import ray
    except ImportError as error:
        raise BagError("Ray is not installed: run `pip install ray`, or leave --ray out") from error
    try:
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except Exception as error:  # that a node took too long to start has no type of its own
        raise BagError(
            f"no Ray cluster at {address!r} ({_short(error)}); give its address, or `local`"
        ) from error
    if threading.current_thread() is threading.main_thread():
        for number, handler in ours.items():  # Ray's own would abort the process
            signal.signal(number, handler)
    connected: Any = ray
    cpus = connected.cluster_resources().get("CPU", 0)
    if cpus < engine.threads:
        ray.shutdown()
        raise BagError(f"the Ray cluster has {cpus:g} CPUs, and --threads is {engine.threads}")
    return connected
