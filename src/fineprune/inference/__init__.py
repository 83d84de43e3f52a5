"""Run a pruned model fast on the CPU: `accelerate`. The engine itself is the package fineprune_runtime."""
