"""Measuring the aligned model against the base."""
