"""A message type that a bag or a publisher names makes Python import nothing else."""

import sys

import pytest
from std_msgs.msg import String

from magicfuse_ros.bags.player import find_message_class


def test_a_message_type_is_found():
    assert find_message_class("std_msgs/msg/String") is String


@pytest.mark.parametrize(
    "name",
    [
        "harmful/msg/String",
        "harmful/x/String",
        "harmful.msg/msg/String",
        "../harmful/msg/String",
        "harmful",
        "",
        "__main__/msg/String",
        "std_msgs/msg/__name__",
        "std_msgs/msg/Unheard",
        "std_msgs/srv/String",
        "std_msgs/msg/String/more",
        "not_installed/msg/String",
    ],
)
def test_the_type_that_a_bag_or_a_publisher_names_imports_nothing_else(tmp_path, monkeypatch, name):
    """Importing a module runs it, and every module that Python finds could be named."""
    package = tmp_path / "harmful"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('it was imported')\n")
    (package / "x.py").touch()
    monkeypatch.syspath_prepend(tmp_path)

    assert find_message_class(name) is None
    assert "harmful" not in sys.modules
