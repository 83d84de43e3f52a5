"""A file for each pruning method; the table of them is `fineprune.config.METHODS`."""
