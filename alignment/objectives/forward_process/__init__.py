"""Objectives on clean samples, noised again."""
