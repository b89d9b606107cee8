"""`magicfuse …`: the command line.

Each command is a module of `magicfuse_ros.commands`, imported when it is used. It has HELP,
add_arguments(parser) and run(args), which returns the exit status.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

# Nothing that takes time to import may stand here: signals are caught from `main` on.
from magicfuse_ros.commands.exit_status import (
    FAILED,
    SCHEME,
    ignore_signals,
    raise_on_signals,
    status_of,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

COMMANDS = {
    "fuse": "fuse",
    "bag": "bag",
    "demo": "demo",
    "view": "view",
    "node": "node",
    "train": "train",
    "evaluate": "evaluate",
    "benchmark": "benchmark",
    "build": "build",
    "export-onnx": "export_onnx",
    "import-weights": "import_weights",
}
"""Command name → module of `magicfuse_ros.commands`."""


def build_parser(commands: Sequence[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """Build the parser with `commands`; by default with all of them."""
    import argparse
    import importlib

    from magicfuse_ros import __version__

    parser = argparse.ArgumentParser(
        prog="magicfuse",
        description="A fused picture and semantics from one degraded visible camera.",
        epilog=SCHEME,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in commands:
        module = importlib.import_module(f"magicfuse_ros.commands.{COMMANDS[command]}")
        subparser = subparsers.add_parser(
            command, help=module.HELP, description=module.HELP, epilog=SCHEME
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Without `argv` it is this process's own command line, and the process's signals and standard
    streams are set up for it.
    """
    if argv is not None:
        return _run(argv)
    raise_on_signals()
    try:
        from magicfuse_ros.commands.standard_streams import flushed, make_patient

        make_patient()
        try:
            status = _run(sys.argv[1:])
        except SystemExit as leave:  # of argparse, after --help or a wrong argument
            status = leave.code if isinstance(leave.code, int) else FAILED
        if not flushed():
            status = FAILED
    except KeyboardInterrupt as stop:
        status = status_of(stop)
    ignore_signals()
    return status


def _run(words: Sequence[str]) -> int:
    # A command that is named needs no other command's module.
    named = words[:1] if words and words[0] in COMMANDS else tuple(COMMANDS)
    args = build_parser(named).parse_args(words)
    try:
        status: int = args.run(args)
    except KeyboardInterrupt as stop:
        print(f"magicfuse {args.command}: stopped", file=sys.stderr)
        return status_of(stop)
    except OSError as error:
        # What a command expects it explains itself; this is a disk, a permission, a memory limit.
        where = f"{error.filename}: " if error.filename else ""
        print(f"magicfuse {args.command}: {where}{error.strerror or error}", file=sys.stderr)
        return FAILED
    return status


if __name__ == "__main__":
    sys.exit(main())
