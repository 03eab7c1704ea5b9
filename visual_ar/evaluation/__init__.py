"""Measurements of quality and speed, one file per metric."""
