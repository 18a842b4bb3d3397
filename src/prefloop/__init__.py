"""The preference loop: sample, rate, pair, train, merge, measure, again."""

__version__ = "0.1.0"
