"""People say which of two pictures is better: blind, in random order, and what they say is data."""
