"""Evaluation: metrics, baselines, the report's tables and the picture sheet."""
