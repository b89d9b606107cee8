"""Datasets of visible images with infrared and labels: folder layouts, cache, crops, validation."""

from magicfuse_ros.training.datasets.cache import (
    CachedItem,
    CachedSource,
    CacheSettings,
    open_cache,
)
from magicfuse_ros.training.datasets.crops import Crops, DataConfig
from magicfuse_ros.training.datasets.frames import Box, DatasetError, Frame, Item, Source
from magicfuse_ros.training.datasets.layouts import LAYOUTS, find_sources, read_source
from magicfuse_ros.training.datasets.validation import ValidationItem, validation_items

__all__ = [
    "LAYOUTS",
    "Box",
    "CacheSettings",
    "CachedItem",
    "CachedSource",
    "Crops",
    "DataConfig",
    "DatasetError",
    "Frame",
    "Item",
    "Source",
    "ValidationItem",
    "find_sources",
    "open_cache",
    "read_source",
    "validation_items",
]
