"""fuse.launch.py under launch_testing: a frame in, its MagImg out, and a clean end.

    launch_test test/launch/fuse.test.py model:=FOLDER backend:=eager

Arguments are the launch file's own. The package must be installed and ROS 2's environment sourced.
test_launch.py runs this where launch_testing is installed.
"""

import os
import sys
import unittest
from pathlib import Path

import numpy as np
from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_testing import post_shutdown_test
from launch_testing.actions import ReadyToTest
from launch_testing.asserts import assertExitCodes
from sensor_msgs.msg import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.system import CameraProcess, Listener, adds_up, rgb, send_until_fused

from magicfuse_ros.resources import share_dir

STAMP = 7 * 10**9 + 5
LOAD_S = 900.0  # a busy machine takes its time to load torch


def generate_test_description():
    launch_file = share_dir() / "launch" / "fuse.launch.py"
    include = IncludeLaunchDescription(PythonLaunchDescriptionSource(str(launch_file)))
    return LaunchDescription([include, ReadyToTest()])


class TestFuse(unittest.TestCase):
    def test_a_frame_comes_out_under_its_own_stamp(self, proc_output):
        proc_output.assertWaitFor("Active", timeout=LOAD_S)
        domain = int(os.environ.get("ROS_DOMAIN_ID", "0"))
        picture = rgb(np.full((48, 64, 3), 90, np.uint8), STAMP, "front")
        with Listener(domain) as listener, CameraProcess(domain) as camera:
            magimg = listener.hear("/fuse_node/magimg", Image)
            message = send_until_fused(camera, listener, magimg, picture)
            _, values = listener.next_status(lambda _, v: v["frames_pending"] == "0")
        stamp = message.header.stamp
        assert stamp.sec * 10**9 + stamp.nanosec == STAMP
        assert message.header.frame_id == "front"
        assert (message.height, message.width, message.encoding) == (48, 64, "rgb8")
        assert adds_up(values)


@post_shutdown_test()
class TestEnd(unittest.TestCase):
    def test_the_node_ends_with_exit_status_0(self, proc_info):
        assertExitCodes(proc_info)
