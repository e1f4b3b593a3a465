"""What a run writes down, and what people read of it."""
