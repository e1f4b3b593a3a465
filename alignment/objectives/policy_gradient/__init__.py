"""Objectives on transitions."""
