"""What every command shares: exit statuses, signals from the first moment on, standard streams."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from magicfuse_ros import cli
from magicfuse_ros.commands import exit_status, import_weights
from magicfuse_ros.commands.exit_status import Stopped, StopRequest

ROOT = Path(__file__).parents[1]


def start(*arguments, **options):
    """Start `magicfuse …`; what it is told in the environment goes before the rest."""
    variables = {"PYTHONPATH": str(ROOT)} | options.pop("env", {})
    return subprocess.Popen(
        [sys.executable, "-m", "magicfuse_ros", *map(str, arguments)],
        env=os.environ | variables,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options,
    )


@pytest.mark.parametrize(
    ("raised", "status", "text"),
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (Stopped(signal.SIGTERM), 143, "stopped"),
        (OSError(errno.ENOSPC, "No space left on device", "/disk/x"), 2, "/disk/x: No space left"),
        (FileNotFoundError("no data files"), 2, "no data files"),
    ],
)
def test_what_ends_a_command_is_a_line_and_a_status(monkeypatch, capsys, raised, status, text):
    def end(_args):
        raise raised

    monkeypatch.setattr(import_weights, "run", end)
    names = ("ae", "ikr", "ckg", "mkf")
    assert cli.main(["import-weights", *(f"--{name}=x" for name in names)]) == status
    err = capsys.readouterr().err
    assert text in err
    assert err.startswith("magicfuse import-weights: ")
    assert len(err.splitlines()) == 1


def test_a_request_to_stop_keeps_the_signal_and_a_second_interrupt_raises():
    before = {number: signal.getsignal(number) for number in exit_status.SIGNALS}
    try:
        stop = exit_status.stop_on_signals()
        assert (stop.status, stop.is_set()) == (0, False)
        signal.raise_signal(signal.SIGTERM)
        assert (stop.status, stop.is_set()) == (143, True)
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)
        patient = exit_status.stop_on_signals(impatient=False)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert patient.status == 130
        # As nohup starts a command, and as a script does in its background.
        for number in (signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        exit_status.raise_on_signals()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert StopRequest().status == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_amid_the_imports_is_a_stop_without_a_traceback(tmp_path, number):
    """The imports take most of a second; here a module of the user's stands in for a slow one."""
    (tmp_path / "cv2.py").write_text(
        "import pathlib, time\n"
        f"pathlib.Path({str(tmp_path / 'reached')!r}).touch()\n"
        "try:\n    time.sleep(60)\nexcept BaseException:\n    raise ImportError('half of it')\n"
    )
    process = start("fuse", "a.png", "b.png", env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    while process.poll() is None and not (tmp_path / "reached").exists():
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (128 + number, "", "")


def test_text_that_the_locale_cannot_show_is_written_as_an_escape():
    ascii_only = {"PYTHONIOENCODING": "ascii", "LANG": "C", "LC_ALL": "C"}
    process = start("import-weights", "--help", env=ascii_only)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert "\\u03a8, the IKR branch" in out


def test_a_reader_that_has_gone_is_no_error():
    process = start("--help")
    process.stdout.close()
    assert process.wait(timeout=30) == 0
    assert process.stderr.read() == ""


def test_standard_output_on_a_full_disk_is_no_success():
    with Path("/dev/full").open("w") as full:
        process = start("--help", stdout=full)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert err == "magicfuse: standard output cannot be written: No space left on device\n"


def test_the_help_tells_the_statuses(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert exit_status.SCHEME in said
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for status in ("0 all is done", "1 some of the input", "2 nothing could be done"):
        assert status in said
        assert status in readme
