"""Objectives on pairs."""
