"""Studies: a grid of runs, their tables, and the claims of the paper about them."""
