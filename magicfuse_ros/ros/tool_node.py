"""The ROS node of a program that is none itself, but plays to nodes, records them or shows them."""

from __future__ import annotations

import threading

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions


class ToolNode:
    """A node in a context of its own, which leaves signals to the program.

    Either a thread spins it, from `start` to `close`, or the program spins `executor` itself.

    Attributes
    ----------
    node, executor
        The node, and what spins it.
    failure
        What a callback raised in the thread, which ended it; None while it goes on.
    """

    def __init__(self, name: str) -> None:
        self._context = Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self.node = Node(name, context=self._context, start_parameter_services=False)
        self.executor = SingleThreadedExecutor(context=self._context)
        self.executor.add_node(self.node)
        self.failure: Exception | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to spin."""
        self._thread = threading.Thread(target=self._spin, name="tool_node")
        self._thread.start()

    def close(self) -> None:
        """Stop spinning, and leave ROS."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        self.executor.shutdown()
        self.node.destroy_node()
        self._context.try_shutdown()

    def _spin(self) -> None:
        try:
            while not self._closing.is_set():
                self.executor.spin_once(timeout_sec=0.1)
        except Exception as error:  # noqa: BLE001 - of a callback: whoever waits for it looks here
            self.failure = error
