"""`python -m potstill` is the command line."""

from potstill.cli import main

main()
