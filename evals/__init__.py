"""Measure: reward models against people, generators against benchmarks, checkpoints against each other."""
