"""Cuts without labels, layer by layer: a file for each way to choose and correct the weights of a matrix."""
