"""`python -m fineprune`."""

from fineprune.cli import main

main()
