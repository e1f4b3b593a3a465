"""From YAML to a run."""
