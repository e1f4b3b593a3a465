"""A reward in another process: what goes over the wire, both ends of it."""
