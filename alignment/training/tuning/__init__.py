"""Searching a few fields of a config by short runs."""
