"""MagicFuse for ROS 2: a fused picture and semantics from one degraded visible camera."""

__version__ = "0.1.0"
