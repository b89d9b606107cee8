"""Datasets of visible images with infrared and labels: folder layouts, cache, crops, validation."""
