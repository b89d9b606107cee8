"""The engine's type, for annotations of those who must not import PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from magicfuse_ros.runtime.engine import FuseEngine

Engine: TypeAlias = "FuseEngine"
