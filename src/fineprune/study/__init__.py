"""Many runs: a grid of them, their tables, and what the paper claims of these."""
