"""`python -m pipeline.cli` is `glance`."""

from pipeline.cli import main

main()
