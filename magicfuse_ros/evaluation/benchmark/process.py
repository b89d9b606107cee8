"""The processes that the benchmark's measurements are made in, seen from outside."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, final

from magicfuse_ros.evaluation.benchmark.machine import BenchmarkError

CACHE_VARIABLE = "XDG_CACHE_HOME"
"""Environment variable of the folder that compiled artifacts are kept under."""

_POLL_S = 0.1


@final
class Workers:
    """Worker processes, one at a time; a context manager that leaves none behind.

    Parameters
    ----------
    folder
        Takes what they say on stderr.
    check
        Called ten times a second meanwhile; what it raises ends the worker.
    reuse
        Do every job in the same process, which saves its start but makes memory and start-up
        meaningless.
    """

    def __init__(self, folder: Path, check: Callable[[], None], *, reuse: bool) -> None:
        self._log = folder / "worker.log"
        self._check, self._reuse = check, reuse
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, job: str, cache: Path, **arguments: Any) -> dict[str, Any]:
        """Do one job; its arguments are the worker's, `cache` is the artifact cache's folder.

        Raises
        ------
        BenchmarkError
            The job failed; the text says why.
        """
        process = self._process or self._start(cache)
        self._process = process
        try:
            line = self._ask(process, json.dumps({"job": job, **arguments}))
        except BaseException:
            self.close()
            raise
        if line is None:
            status = process.wait()
            self.close()
            raise BenchmarkError(f"{job} ended with status {status}: {self._last_words()}")
        if not self._reuse:
            self.close()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(f"{job}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the worker."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None  # noqa: S101 - both are pipes
            with suppress(BrokenPipeError):
                stream.close()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, cache: Path) -> subprocess.Popen[bytes]:
        cache.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "magicfuse_ros.evaluation.benchmark.worker"],
                env=os.environ | {CACHE_VARIABLE: str(cache)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    def _ask(self, process: subprocess.Popen[bytes], request: str) -> bytes | None:
        """Send one line and wait for one; None when the worker ends instead."""
        assert process.stdin is not None  # noqa: S101 - both are pipes
        assert process.stdout is not None  # noqa: S101
        with suppress(BrokenPipeError):
            process.stdin.write(request.encode() + b"\n")
            process.stdin.flush()
        answer = b""
        while not answer.endswith(b"\n"):
            self._check()
            if not select.select([process.stdout], [], [], _POLL_S)[0]:
                continue
            part = os.read(process.stdout.fileno(), 65536)
            if not part:
                return None
            answer += part
        return answer

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "no word")
