"""Runs `magicfuse` commands one after another, in processes that need not import everything again.

A JSON list on stdin: {"folder": where, "words": the arguments, "until": a text after which Ctrl-C
follows, or null}.
Result: for each, on a line of stdout, {"status", "said", "cpu_s"}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch  # noqa: F401 - what takes longest

import magicfuse_ros.runtime.engine  # noqa: F401
from magicfuse_ros.cli import main

PATIENCE_S = 120.0


def in_child(folder, words, log):
    """Run a command in this process, a fork, and end it."""
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    output = os.open(log, os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["magicfuse", *words]
    status = 70
    try:
        status = main()
    except BaseException:  # noqa: BLE001 - it has to be seen
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run(folder, words, until):
    """Run one command; returns its exit status and what it said."""
    with tempfile.NamedTemporaryFile() as log:
        child = os.fork()
        if child == 0:
            in_child(folder, words, log.name)
        end, told = time.monotonic() + PATIENCE_S, False
        while True:
            done, status, used = os.wait4(child, os.WNOHANG)
            said = Path(log.name).read_text(encoding="utf-8", errors="replace")
            if done:
                cpu_s = used.ru_utime + used.ru_stime
                code = os.waitstatus_to_exitcode(status)
                return {"status": code, "said": said, "cpu_s": cpu_s}
            if until and not told and until in said:
                os.kill(child, signal.SIGINT)
                told = True
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.02)


for order in json.load(sys.stdin):
    print(json.dumps(run(**order)), flush=True)
