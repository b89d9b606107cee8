"""`magicfuse demo` with the node of noop_node.py for the real one: run as a script by tests."""

import sys
from pathlib import Path

from magicfuse_ros.cli import main
from magicfuse_ros.commands import node_process

command_of_the_real_node = node_process.fuse_node_command


def command(remappings, parameters):
    python, _m, _module, *arguments = command_of_the_real_node(remappings, parameters)
    return [python, str(Path(__file__).with_name("noop_node.py")), *arguments]


node_process.fuse_node_command = command
sys.exit(main(["demo", *sys.argv[1:]]))
