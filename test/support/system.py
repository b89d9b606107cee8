"""A system under test: `fuse_node` and cameras as processes of their own, and a listener here."""

import base64
import contextlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import DescribeParameters, SetParameters
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from std_srvs.srv import SetBool

import magicfuse_ros

SUPPORT = Path(__file__).parent
ROOT = Path(magicfuse_ros.__file__).parents[1]
PROFILE = SUPPORT.parents[1] / "config" / "fastdds.xml"
PATIENCE_S = 180.0  # for what has to come: loaded machines take a minute to load a real engine

# For the listener, which lives in the test's own process.
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ.setdefault("FASTDDS_DEFAULT_PROFILES_FILE", str(PROFILE))

CONFIGURE = Transition.TRANSITION_CONFIGURE
ACTIVATE = Transition.TRANSITION_ACTIVATE
DEACTIVATE = Transition.TRANSITION_DEACTIVATE
CLEANUP = Transition.TRANSITION_CLEANUP
SHUTDOWN_INACTIVE = Transition.TRANSITION_INACTIVE_SHUTDOWN
SHUTDOWN_ACTIVE = Transition.TRANSITION_ACTIVE_SHUTDOWN
SHUTDOWN_UNCONFIGURED = Transition.TRANSITION_UNCONFIGURED_SHUTDOWN


TURNS = itertools.count(random.SystemRandom().randrange(20))


def random_domain():
    """Return a DDS domain that no other worker of this run uses (pytest-xdist: gw0, gw1 …).

    The worker's 20 domains take turns, so that what a test left behind is not heard by the next.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
    return 20 + 20 * worker + next(TURNS) % 20


def environment(domain, **extra):
    variables = dict(os.environ)
    variables["ROS_DOMAIN_ID"] = str(domain)
    variables["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), variables.get("PYTHONPATH")])
    )
    variables["OMP_NUM_THREADS"] = "1"
    variables.update(extra)
    return {name: value for name, value in variables.items() if value is not None}


class Stoppable:
    """A context manager that ends with `stop`."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class FuseNodeProcess(Stoppable):
    """`fuse_node` with the no-op engine (or, with `command`, anything else)."""

    def __init__(self, domain, log, *, parameters=None, arguments=(), command=None, **extra):
        command = command or [sys.executable, str(SUPPORT / "noop_node.py")]
        given = ["--ros-args"]
        for name, value in (parameters or {}).items():
            spelled = str(value).lower() if isinstance(value, bool) else value
            given += ["-p", f"{name}:={spelled}"]
        self.log_path = Path(log)
        with self.log_path.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, *given, *arguments],
                env=environment(domain, **extra),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    @property
    def log(self):
        return self.log_path.read_text(encoding="utf-8")

    def lines(self, level):
        return [line for line in self.log.splitlines() if line.startswith(f"[{level}]")]

    def wait_for_log(self, pattern, timeout_s=PATIENCE_S):
        end = time.monotonic() + timeout_s
        while not re.search(pattern, self.log):
            assert self.process.poll() is None, f"the node ended:\n{self.log}"
            assert time.monotonic() < end, f"no {pattern!r} in:\n{self.log}"
            time.sleep(0.02)

    def send(self, *signals):
        for number in signals:
            self.process.send_signal(number)
            time.sleep(0.02)

    def exit_code(self, timeout_s=PATIENCE_S):
        return self.process.wait(timeout_s)

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class CameraProcess(Stoppable):
    """camera.py, and what a test asks it to publish."""

    def __init__(self, domain):
        self.process = subprocess.Popen(
            [sys.executable, str(SUPPORT / "camera.py")],
            env=environment(domain),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert json.loads(self.process.stdout.readline())["ready"]

    def order(self, **fields):
        self.begin(**fields)
        return self.end()

    def begin(self, **fields):
        self.process.stdin.write(json.dumps(fields) + "\n")
        self.process.stdin.flush()

    def end(self):
        return json.loads(self.process.stdout.readline())

    def publish(self, *messages, topic="/image", kind="raw", **options):
        return self.order(topic=topic, type=kind, messages=list(messages), **options)

    def stop(self):
        self.process.stdin.close()
        self.process.wait(PATIENCE_S)
        self.process.stdout.close()


class Listener(Stoppable):
    """Subscribes to what the node publishes and calls its services."""

    def __init__(self, domain, node_name="/fuse_node"):
        self.node_name = node_name
        self.context = Context()
        # Without arguments of its own: launch_test's are not for ROS.
        rclpy.init(args=[], context=self.context, domain_id=domain)
        self.node = Node("listener", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.statuses = []
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.received = {}
        self.subscriptions = {}
        self.clients = {}
        self.failure = None
        self.thread = threading.Thread(target=self._spin, daemon=True)
        self.thread.start()

    def _spin(self):
        try:
            with contextlib.suppress(ExternalShutdownException):
                self.executor.spin()
        except Exception as error:  # noqa: BLE001 - `wait` raises it in the test's thread
            self.failure = error

    def in_executor(self, function, *arguments):
        """Call `function` between two callbacks and return what it returns.

        Whatever destroys an entity needs this: rclpy's executor ends with InvalidHandle, and the
        listener hears nothing any more, if an entity goes while a wait set is made with it.
        """
        task = self.executor.create_task(function, *arguments)
        self.wait(task.done, f"{function} does not end")
        return task.result()

    def _on_diagnostics(self, message):
        for status in message.status:
            if status.name == f"{self.node_name.lstrip('/')}: magicfuse":
                self.statuses.append((message, status))

    def hear(self, topic, message_type, reliability="reliable", depth=50, **options):
        """Subscribe to what is published; messages go to the returned list."""
        received = self.hear_later(topic, message_type, reliability, depth, **options)
        self.wait(lambda: self.publishers(received) > 0, f"nobody publishes {topic}")
        time.sleep(0.1)  # the publisher learns of the subscriber a moment after the reverse
        return received

    def hear_later(self, topic, message_type, reliability="reliable", depth=50, *, latched=False):
        """Subscribe before anybody publishes."""
        policy = ReliabilityPolicy.RELIABLE
        if reliability == "best_effort":
            policy = ReliabilityPolicy.BEST_EFFORT
        qos = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=policy)
        if latched:
            qos.durability = DurabilityPolicy.TRANSIENT_LOCAL
        received = []
        subscription = self.node.create_subscription(message_type, topic, received.append, qos)
        self.subscriptions[id(received)] = subscription
        return received

    def publishers(self, received):
        return self.subscriptions[id(received)].get_publisher_count()

    def forget(self, received):
        subscription = self.subscriptions.pop(id(received))
        self.in_executor(self.node.destroy_subscription, subscription)

    def wait(self, condition, complaint, timeout_s=PATIENCE_S):
        end = time.monotonic() + timeout_s
        while not condition():
            if self.failure is not None:
                raise RuntimeError("the listener hears nothing any more") from self.failure
            if time.monotonic() > end:
                raise TimeoutError(complaint() if callable(complaint) else complaint)
            time.sleep(0.005)

    def values(self):
        """The key-values of the newest diagnostics."""
        return (
            {pair.key: pair.value for pair in self.statuses[-1][1].values} if self.statuses else {}
        )

    def next_status(self, condition=lambda _status, _values: True):
        """Wait for new diagnostics that satisfy `condition(status, values)`."""
        seen = len(self.statuses)

        def found():
            nonlocal seen
            while seen < len(self.statuses):
                status = self.statuses[seen][1]
                seen += 1
                values = {pair.key: pair.value for pair in status.values}
                if condition(status, values):
                    self.found = status, values
                    return True
            return False

        self.wait(found, lambda: f"no such diagnostics; newest: {self.statuses[-1:]}")
        return self.found

    def call(self, service_type, name, request):
        key = service_type, name
        if key not in self.clients:
            self.clients[key] = self.node.create_client(service_type, f"{self.node_name}/{name}")
        client = self.clients[key]
        assert client.wait_for_service(PATIENCE_S), f"no service {name}"
        future = client.call_async(request)
        self.wait(future.done, f"no answer from {name}")
        return future.result()

    def state(self):
        return self.call(GetState, "get_state", GetState.Request()).current_state.label

    def change_state(self, transition):
        request = ChangeState.Request(transition=Transition(id=transition))
        return self.call(ChangeState, "change_state", request).success

    def enable(self, value):
        return self.call(SetBool, "enable", SetBool.Request(data=value))

    def set_parameters(self, **values):
        parameters = [
            Parameter(name.replace("__", "."), value=value).to_parameter_msg()
            for name, value in values.items()
        ]
        request = SetParameters.Request(parameters=parameters)
        return self.call(SetParameters, "set_parameters", request).results

    def describe(self, *names):
        request = DescribeParameters.Request(names=names)
        return self.call(DescribeParameters, "describe_parameters", request).descriptors

    def stop(self):
        self.executor.shutdown()
        self.thread.join(PATIENCE_S)
        self.node.destroy_node()
        self.context.try_shutdown()


def rgb(picture, stamp, frame_id="camera", **changes):
    """The fields of an rgb8 Image with `picture`'s pixels."""
    height, width = picture.shape[:2]
    fields = {
        "height": height,
        "width": width,
        "encoding": "rgb8",
        "step": width * 3,
        "data": base64.b64encode(np.ascontiguousarray(picture).tobytes()).decode(),
        "stamp": stamp if stamp == "now" else [stamp // 10**9, stamp % 10**9],
        "frame_id": frame_id,
    }
    return fields | changes


def stamp_ns(message):
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def adds_up(values):
    """Whether frames in = frames out + counted drops + pending, by the node's key-values."""
    counted = ("frames_out", "dropped_total", "frames_pending")
    return int(values["frames_in"]) == sum(int(values[name]) for name in counted)


def send_until_fused(camera, listener, received, fields, **options):
    """Publish a good picture until it comes out, and return what does.

    The node may just be matching its camera.
    """
    seconds, nanoseconds = fields["stamp"]
    stamp = seconds * 10**9 + nanoseconds

    def found():
        return [message for message in received if stamp_ns(message) == stamp]

    for attempt in range(10):
        camera.publish(fields, **options)
        with contextlib.suppress(TimeoutError):
            listener.wait(found, "no frame comes out", 2.0 * (attempt + 1))
            return found()[0]
    raise TimeoutError("no frame comes out any more")
