"""Checks how other nodes publish the topics that a node reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rclpy.node import Node

_TRANSPORTS = {"sensor_msgs/msg/CompressedImage": "compressed", "sensor_msgs/msg/Image": "raw"}


def wrong_types(node: Node, will_read: Mapping[str, type[Any]]) -> list[str]:
    """Name the topics that are published with another message type than `node` reads.

    Nothing else reports this: DDS does not connect the two, and tells neither side. `will_read` is
    what the node will subscribe to: resolved topic → message class.
    """
    found = {}
    subscribed = {each.topic_name: each.msg_type for each in node.subscriptions}
    for topic, message_type in {**will_read, **subscribed}.items():
        wanted = type_name(message_type)
        for endpoint in node.get_publishers_info_by_topic(topic):
            if endpoint.topic_type != wanted:
                found[topic] = f"{topic} is published as {endpoint.topic_type}; " + _advice(
                    node, wanted, endpoint.topic_type
                )
    return list(found.values())


def type_name(message_type: type[Any]) -> str:
    """Return the name of a message class as ROS writes it: `sensor_msgs/msg/Image`."""
    return f"{message_type.__module__.partition('.')[0]}/msg/{message_type.__name__}"


def _advice(node: Node, wanted: str, published: str) -> str:
    if {wanted, published} == set(_TRANSPORTS) and node.has_parameter("input_transport"):
        return f"set input_transport to {_TRANSPORTS[published]}"
    return f"this node reads {wanted}"
