"""Run one recipe, from a YAML file to a run folder, and use the folder: inspect, evaluate, convert."""
