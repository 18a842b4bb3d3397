"""The verbs: parsing and printing, one file for each group of them."""

from prefloop.cli.commands import app, main

__all__ = ["app", "main"]
