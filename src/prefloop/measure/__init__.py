"""Measurements outside a run: models, runs and answers that are there already."""
