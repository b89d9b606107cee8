"""`magicfuse fuse` with an engine that computes nothing: run as a script by tests."""

import sys

from support.noop_node import NoopEngine

from magicfuse_ros.cli import main
from magicfuse_ros.commands import fuse_session

fuse_session.load_engine = NoopEngine
sys.argv.insert(1, "fuse")
sys.exit(main())
