"""Tags of words, and the entities that they make up."""
