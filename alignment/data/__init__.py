"""What comes in, and the batches that sources hand to objectives."""
