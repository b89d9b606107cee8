"""A camera in a process of its own, told by JSON lines on stdin what to publish, field by field.

A line is {"topic", "type": "raw"|"compressed"|"info"|"clock"|"cloud", "reliability",
"messages": [fields], "rate_hz", "repeat", "subscribers": how many to wait for}; when it is
published, a line comes back.
`data` is base64, or a number of zero bytes; a stamp is [seconds, nanoseconds], or "now".
"""

import array
import base64
import json
import sys
import time

import rclpy
from builtin_interfaces.msg import Time
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField

TYPES = {
    "raw": Image,
    "compressed": CompressedImage,
    "info": CameraInfo,
    "clock": Clock,
    "cloud": PointCloud2,
}


def make(kind, fields):
    message = TYPES[kind]()
    for name, value in fields.items():
        if name == "stamp":
            now = divmod(time.time_ns(), 10**9)
            seconds, nanoseconds = now if value == "now" else value
            stamp = Time(sec=int(seconds), nanosec=int(nanoseconds))
            if kind == "clock":
                message.clock = stamp
            else:
                message.header.stamp = stamp
        elif name == "frame_id":
            message.header.frame_id = value
        elif name == "data":
            raw = base64.b64decode(value) if isinstance(value, str) else bytes(value)
            message.data = array.array("B", raw)
        elif name == "fields":
            message.fields = [PointField(**entry) for entry in value]
        else:
            setattr(message, name, value)
    return message


class Camera(Node):
    def __init__(self):
        super().__init__("camera")
        self.outputs = {}

    def output(self, order):
        key = order["topic"], order["type"], order.get("reliability", "reliable")
        if key not in self.outputs:
            best_effort = key[2] == "best_effort"
            qos = QoSProfile(
                history=HistoryPolicy.KEEP_LAST,
                depth=10,
                reliability=ReliabilityPolicy.BEST_EFFORT
                if best_effort
                else ReliabilityPolicy.RELIABLE,
            )
            self.outputs[key] = self.create_publisher(TYPES[key[1]], key[0], qos)
        return self.outputs[key]

    def obey(self, order):
        if order.get("unplug"):
            for output in self.outputs.values():
                self.destroy_publisher(output)
            self.outputs.clear()
            return {}
        output = self.output(order)
        wanted = order.get("subscribers", 1)
        end = time.monotonic() + 20.0
        while output.get_subscription_count() < wanted and time.monotonic() < end:
            time.sleep(0.01)
        period = 1.0 / order["rate_hz"] if "rate_hz" in order else 0.0
        sent, due = 0, time.monotonic()
        for _ in range(order.get("repeat", 1)):
            for fields in order["messages"]:
                output.publish(make(order["type"], fields))
                sent += 1
                due += period
                time.sleep(max(0.0, due - time.monotonic()))
        return {"sent": sent, "subscribers": output.get_subscription_count()}


def main():
    rclpy.init()
    camera = Camera()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(camera.obey(json.loads(line))), flush=True)
    camera.destroy_node()
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
