"""semantic_cloud's parts that need no other process: matching, extrinsics, parameters."""

import gc
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Quaternion, Transform, TransformStamped, Vector3
from hypothesis import given, settings
from hypothesis import strategies as st
from rclpy.context import Context
from rclpy.lifecycle import TransitionCallbackReturn
from support.system import random_domain

from magicfuse_ros.ros.cloud import extrinsics
from magicfuse_ros.ros.cloud.cloud_errors import CloudError
from magicfuse_ros.ros.cloud.cloud_lifecycle import SemanticCloudNode
from magicfuse_ros.ros.cloud.cloud_parameters import (
    CLOUD_PARAMETERS,
    CloudSettings,
)
from magicfuse_ros.ros.cloud.extrinsics import Extrinsics, RigidTransform
from magicfuse_ros.ros.cloud.matching import (
    EXPIRED,
    INCOMPLETE,
    NO_CLOUD,
    NO_MASK,
    OUT_OF_ORDER,
    TIME_JUMP,
    Matcher,
)
from magicfuse_ros.ros.parameter_table import ParameterError

MS = 1_000_000
DEFAULTS = {spec.name: spec.default for spec in CLOUD_PARAMETERS}


class Matching:
    """A matcher, and everything it says."""

    def __init__(self, *, slop_ms=50, queue=20, parts=("mask", "confidence")):
        self.clouds, self.frames = Counter(), Counter()
        self.found = []
        self.matcher = Matcher(
            frozenset(parts),
            slop_ns=slop_ms * MS,
            queue=queue,
            drop_cloud=lambda reason: self.clouds.update([reason]),
            drop_frame=lambda reason: self.frames.update([reason]),
            new_frame=lambda: self.frames.update(["in"]),
        )

    def cloud(self, *stamps_ms):
        for stamp in stamps_ms:
            self.clouds["in"] += 1
            self.matcher.add_cloud(stamp * MS, f"cloud {stamp}")
            self.take()
        return self

    def part(self, name, *stamps_ms):
        for stamp in stamps_ms:
            self.matcher.add_part(stamp * MS, name, f"{name} {stamp}")
            self.take()
        return self

    def frame(self, *stamps_ms):
        for stamp in stamps_ms:
            self.part("mask", stamp).part("confidence", stamp)
        return self

    def take(self):
        for pair in self.matcher.pairs():
            self.found.append((pair.cloud_ns // MS, pair.frame_ns // MS))
            assert pair.cloud == f"cloud {pair.cloud_ns // MS}"
            assert pair.parts["mask"] == f"mask {pair.frame_ns // MS}"

    def check_accounts(self):
        """Everything that came in is paired, dropped for a reason, or waits."""
        for counts, waiting in zip((self.clouds, self.frames), self.matcher.waiting, strict=True):
            dropped = sum(count for reason, count in counts.items() if reason != "in")
            assert counts["in"] == len(self.found) + dropped + waiting


def test_equal_stamps_pair_at_once_whichever_comes_first():
    assert Matching().cloud(100).frame(100).found == [(100, 100)]
    assert Matching().frame(100).cloud(100).found == [(100, 100)]


def test_the_nearest_cloud_is_taken_once_a_later_one_is_there():
    matching = Matching().cloud(60, 90).frame(100)
    assert matching.found == []
    matching.cloud(105)
    assert matching.found == [(105, 100)]
    assert matching.clouds == {"in": 3, NO_MASK: 2}
    matching.check_accounts()


def test_a_cloud_beyond_slop_is_no_match():
    matching = Matching(slop_ms=10).cloud(100).frame(111, 130).cloud(125, 200)
    assert matching.found == [(125, 130)]
    assert matching.frames == {"in": 2, NO_CLOUD: 1}
    assert matching.clouds[NO_MASK] == 1
    matching.check_accounts()


def test_slop_zero_takes_equal_stamps_only():
    matching = Matching(slop_ms=0).cloud(100, 101, 102).frame(99, 101, 103).cloud(104)
    assert matching.found == [(101, 101)]
    matching.check_accounts()


def test_a_slow_fuse_node_paints_one_cloud_a_frame():
    matching = Matching(queue=50).cloud(*range(0, 2000, 100)).frame(500).cloud(2000).frame(1500)
    assert matching.found == [(500, 500), (1500, 1500)]
    assert matching.clouds[NO_MASK] == 5 + 9
    matching.check_accounts()


def test_clouds_expire_when_no_frame_comes():
    matching = Matching(queue=3).cloud(*range(0, 1000, 100))
    assert matching.clouds == {"in": 10, EXPIRED: 7}
    assert matching.matcher.waiting == (3, 0)
    matching.check_accounts()


def test_frames_wait_for_their_parts_and_a_lost_part_is_counted():
    matching = Matching().cloud(100, 200).part("mask", 100).part("confidence", 200)
    assert matching.found == []
    matching.part("mask", 200)
    assert matching.found == [(200, 200)]
    assert matching.frames == {"in": 2, INCOMPLETE: 1}
    matching.part("confidence", 100)  # too late, and to be seen as such
    assert matching.frames == {"in": 3, INCOMPLETE: 1, OUT_OF_ORDER: 1}
    matching.check_accounts()


def test_frames_may_go_back_before_the_clouds_do():
    matching = Matching().cloud(50_000).frame(50_000).cloud(50_100).frame(100).cloud(100)
    assert matching.found == [(50_000, 50_000), (100, 100)]
    assert matching.clouds[TIME_JUMP] == 1
    matching.check_accounts()


def test_a_recording_that_starts_anew_is_matched_anew():
    matching = Matching().cloud(50_000).frame(50_000).cloud(50_100).part("mask", 50_100)
    matching.cloud(100).frame(100)
    assert matching.found == [(50_000, 50_000), (100, 100)]
    assert matching.clouds[TIME_JUMP] == matching.frames[TIME_JUMP] == 1
    matching.check_accounts()


def test_what_is_older_than_the_last_pair_is_counted_out_of_order():
    matching = Matching().cloud(500).frame(500).cloud(400).frame(400).cloud(500)
    assert matching.found == [(500, 500)]
    assert matching.clouds == {"in": 3, OUT_OF_ORDER: 2}
    assert matching.frames == {"in": 2, OUT_OF_ORDER: 1}
    matching.check_accounts()


def test_two_clouds_of_one_stamp_are_one():
    matching = Matching().cloud(100, 100).frame(100)
    assert matching.found == [(100, 100)]
    assert matching.clouds == {"in": 2, "replaced": 1}
    matching.check_accounts()


def test_clear_gives_everything_up():
    matching = Matching().cloud(100, 200).frame(300)
    matching.matcher.clear("disabled")
    assert matching.clouds == {"in": 2, "disabled": 2}
    assert matching.frames == {"in": 1, "disabled": 1}
    matching.check_accounts()


@given(
    clouds=st.lists(st.integers(0, 3000), max_size=40),
    frames=st.lists(st.integers(0, 3000), max_size=40),
    slop_ms=st.integers(0, 200),
    queue=st.integers(1, 30),
    data=st.data(),
)
@settings(deadline=None, max_examples=200)
def test_nothing_is_lost_nor_used_twice_in_any_order(clouds, frames, slop_ms, queue, data):
    """Any stamps in any order, parts lost at will."""
    matching = Matching(slop_ms=slop_ms, queue=queue)
    events = [("cloud", stamp) for stamp in clouds]
    events += [(part, stamp) for stamp in frames for part in ("mask", "confidence")]
    for kind, stamp in data.draw(st.permutations(events)):
        if kind == "cloud":
            matching.cloud(stamp)
        else:
            matching.part(kind, stamp)
        matching.check_accounts()
    assert all(abs(cloud - frame) <= slop_ms for cloud, frame in matching.found)


@given(
    periods=st.tuples(st.integers(20, 120), st.integers(20, 400)),
    offset=st.integers(0, 100),
    slop_ms=st.integers(0, 100),
    delay=st.integers(0, 600),
)
@settings(deadline=None, max_examples=200)
def test_steady_topics_pair_as_by_hand(periods, offset, slop_ms, delay):
    """Delivered in time, with frames `delay` late: each frame gets its nearest cloud."""
    clouds = list(range(0, 4000, periods[0]))
    frames = list(range(offset, 3500, periods[1]))
    matching = Matching(slop_ms=slop_ms, queue=1000)
    for at in sorted({*clouds, *(frame + delay for frame in frames)}):
        if at in clouds:
            matching.cloud(at)
        if at - delay in frames:
            matching.frame(at - delay)
    used = -1
    expected = []
    for frame in frames:
        past = next(cloud for cloud in clouds if cloud >= frame)
        left = [cloud for cloud in clouds if used < cloud <= past and abs(cloud - frame) <= slop_ms]
        if left:
            used = min(left, key=lambda cloud: abs(cloud - frame))
            expected.append((used, frame))
    assert matching.found == expected
    matching.check_accounts()


# --- extrinsics -------------------------------------------------------------------------------


def test_an_extrinsic_is_the_pose_of_the_clouds_frame():
    """A LiDAR (x forward, y left, z up) 0.3 m above the camera and 0.1 m behind it."""
    transform = RigidTransform.parse("0 -0.3 -0.1  1.5707963 -1.5707963 0")
    lidar = np.array([[5.0, 5.0, 5.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])

    seen = [[0.0, -0.3, 4.9], [-1.0, -0.3, 4.9], [0.0, -1.3, 4.9]]
    assert np.allclose(transform.apply(lidar).T, seen, atol=1e-6)


@pytest.mark.parametrize("text", ["1, 2, 3, 0, 0, 0", "[1.0, 2, 3e0, 0, 0, 0]", " 1 2 3 0 0 0 "])
def test_an_extrinsic_may_be_written_with_commas_or_brackets(text):
    assert RigidTransform.parse(text).translation.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("text", ["1 2 3", "1 2 3 4 5 6 7", "a b c d e f", "1 2 3 0 0 nan"])
def test_an_extrinsic_that_cannot_be_read_says_what_is_accepted(text):
    with pytest.raises(ParameterError, match=r"extrinsic is .*accepted: six numbers"):
        CloudSettings.from_values(DEFAULTS | {"extrinsic": text})


@given(st.tuples(*[st.floats(-3.1, 3.1)] * 3), st.tuples(*[st.floats(-50, 50)] * 3))
@settings(deadline=None)
def test_a_tf_message_and_the_parameter_mean_the_same(angles, shift):
    roll, pitch, yaw = angles
    parsed = RigidTransform.parse(" ".join(str(number) for number in (*shift, *angles)))
    half = np.array([roll, pitch, yaw]) / 2
    (cr, cp, cy), (sr, sp, sy) = np.cos(half), np.sin(half)
    quaternion = Quaternion(
        x=float(sr * cp * cy - cr * sp * sy),
        y=float(cr * sp * cy + sr * cp * sy),
        z=float(cr * cp * sy - sr * sp * cy),
        w=float(cr * cp * cy + sr * sp * sy),
    )
    x, y, z = shift
    message = Transform(translation=Vector3(x=x, y=y, z=z), rotation=quaternion)

    found = RigidTransform.from_message(message)

    assert found.rotation == pytest.approx(parsed.rotation, abs=1e-9)
    assert found.translation.tolist() == pytest.approx(parsed.translation.tolist())


def test_a_rotation_that_is_none_is_refused():
    with pytest.raises(CloudError, match="quaternion"):
        RigidTransform.from_message(Transform(rotation=Quaternion(x=0.0, y=0.0, z=0.0, w=0.0)))


class StandInTf:
    """As much of tf2_ros as is used; it is not on PyPI. The real one: test_semantic_cloud.py."""

    class TransformException(Exception):  # noqa: N818
        pass

    def __init__(self):
        self.asked, self.cleared, self.open = [], 0, 0

    def Buffer(self):  # noqa: N802
        return self

    def TransformListener(self, buffer, node, spin_thread):  # noqa: N802
        assert (buffer, node, spin_thread) == (self, "node", False)
        self.open += 1
        return SimpleNamespace(unregister=self.unregister)

    def unregister(self):
        self.open -= 1

    def lookup_transform(self, target, source, time):
        self.asked.append((target, source, time.nanoseconds))
        if source == "lost":
            raise self.TransformException("frame does\nnot exist")
        transform = TransformStamped()
        transform.transform.translation.x = 2.0
        return transform

    def clear(self):
        self.cleared += 1


@pytest.fixture
def tf(monkeypatch):
    stand_in = StandInTf()
    monkeypatch.setattr(extrinsics, "tf2_ros", stand_in)
    return stand_in


def test_tf_is_asked_at_the_clouds_stamp_and_not_without_need(tf):
    found = Extrinsics("node")
    moved = found.find("camera", "lidar", Time(sec=3, nanosec=7), None)

    assert moved.translation.tolist() == [2.0, 0.0, 0.0]
    assert tf.asked == [("camera", "lidar", 3_000_000_007)]
    fixed = RigidTransform.parse("1 0 0 0 0 0")
    assert found.find("camera", "lidar", Time(sec=4), fixed) is fixed
    assert np.array_equal(found.find("camera", "camera", Time(sec=4), None).rotation, np.eye(3))
    assert len(tf.asked) == 1
    found.close()
    found.close()
    assert tf.open == 0


def test_a_transform_that_tf_does_not_know_is_named(tf):
    with pytest.raises(CloudError, match=r"from 'lost' to 'camera'.*frame does not exist.*set"):
        Extrinsics("node").find("camera", "lost", Time(sec=3), None)


def test_tf_is_cleared_when_a_recording_starts_anew(tf):
    found = Extrinsics("node")
    for second in (50, 51, 50, 10, 11):
        found.find("camera", "lidar", Time(sec=second), None)

    assert tf.cleared == 1


# --- lifecycle --------------------------------------------------------------------------------


def test_lifecycles_leave_nothing_in_the_callback_group():
    """rclpy keeps a reference to every entity that ever was: some 5 KiB a round."""
    context = Context()
    context.init(domain_id=random_domain())
    node = SemanticCloudNode(stop_requested=lambda: False, context=context)

    def cycle():
        for transition in (
            node.trigger_configure,
            node.trigger_activate,
            node.trigger_deactivate,
            node.trigger_cleanup,
        ):
            gc.collect()  # some are in cycles, and go when Python looks for those
            assert transition() == TransitionCallbackReturn.SUCCESS
        return len(node.default_callback_group.entities)

    gc.collect()
    gc.freeze()  # so that only what the rounds leave is looked through
    try:
        counts = [cycle() for _ in range(4)]
    finally:
        gc.unfreeze()
    assert counts[1] == counts[2] == counts[3]
    node.destroy_node()
    context.shutdown()


# --- parameters -------------------------------------------------------------------------------


def test_defaults_hide_nothing_and_ask_tf():
    settings_ = CloudSettings.from_values(DEFAULTS)

    assert settings_.slop_ns == 50 * MS
    assert settings_.extrinsic is None
    assert settings_.occlusion is None
    assert settings_.keep_unseen


def test_occlusion_is_on_with_a_gap():
    occlusion = CloudSettings.from_values(DEFAULTS | {"occlusion.gap": 4}).occlusion

    assert (occlusion.gap, occlusion.tolerance) == (4, 0.1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("slop", -0.1), ("slop", float("nan")), ("queue", 0), ("unseen", "hide"), ("color", 1)],
)
def test_values_out_of_range_are_named(name, value):
    with pytest.raises(ParameterError, match=rf"{name} is .*accepted"):
        CloudSettings.from_values(DEFAULTS | {name: value})


def test_every_parameter_is_named_once_and_described():
    assert len(DEFAULTS) == len(CLOUD_PARAMETERS)
    for spec in CLOUD_PARAMETERS:
        assert spec.description.endswith(".")
        assert spec.descriptor().name == spec.name
