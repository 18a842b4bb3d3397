"""`python -m prefloop` is the same command as `prefloop`."""

from prefloop.cli import main

main()
