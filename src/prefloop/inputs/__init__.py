"""Readers of data from elsewhere, and what they find wrong with it."""

from prefloop.inputs.preferences import PreferenceReader
from prefloop.inputs.problems import Problem, reject_rows
from prefloop.inputs.prompts import TokenLimit, read_prompts
from prefloop.inputs.validate import FileReport, validate_file

__all__ = ["FileReport", "PreferenceReader", "Problem", "TokenLimit", "read_prompts", "reject_rows", "validate_file"]
