"""Pictures for use: those of a pipeline as they come, or the best of several by a reward."""
