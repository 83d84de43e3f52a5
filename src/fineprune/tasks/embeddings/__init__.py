"""Sentence embeddings: a pruned encoder learns those of its dense model, on texts without labels."""
