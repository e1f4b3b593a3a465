"""Generators compared: the same prompts and the same noise for all of them, scored, with intervals."""
