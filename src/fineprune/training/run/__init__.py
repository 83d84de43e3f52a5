"""One recipe, from a YAML file to a run folder, and what is made from that folder."""
