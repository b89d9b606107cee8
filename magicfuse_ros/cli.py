"""`magicfuse …`: the command line.

Each command is a module of `magicfuse_ros.commands`, imported when it is used.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from magicfuse_ros import __version__

COMMANDS = {
    "fuse": "fuse",
    "bag": "bag",
    "demo": "demo",
    "node": "node",
    "train": "train",
    "evaluate": "evaluate",
    "benchmark": "benchmark",
    "build": "build",
    "export-onnx": "export_onnx",
    "import-weights": "import_weights",
}
"""Command name → module of `magicfuse_ros.commands`.

Each has HELP, add_arguments(parser) and run(args), which returns the exit status.
"""


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"magicfuse_ros.commands.{COMMANDS[command]}")


def build_parser(commands: Sequence[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """Build the parser with `commands`; by default with all of them."""
    parser = argparse.ArgumentParser(
        prog="magicfuse",
        description="A fused picture and semantics from one degraded visible camera.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in commands:
        module = _module(command)
        subparser = subparsers.add_parser(command, help=module.HELP, description=module.HELP)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the process's exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    # A command that is named needs no other command's module.
    parser = build_parser(words[:1]) if words and words[0] in COMMANDS else build_parser()
    args = parser.parse_args(words)
    status: int = args.run(args)
    return status


if __name__ == "__main__":
    sys.exit(main())
