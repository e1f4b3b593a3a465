"""Feature caches: what a network computed in one round of the loop, used again in the next ones."""
