"""From scores to credit."""
