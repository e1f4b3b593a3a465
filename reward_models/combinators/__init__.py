"""Rewards made of other rewards, or of a function."""
