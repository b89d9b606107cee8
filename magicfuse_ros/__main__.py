"""`python -m magicfuse_ros` is the `magicfuse` command."""

import sys

from magicfuse_ros.cli import main

sys.exit(main())
