"""Feature caches at work: in one pipeline call, and whether a pipeline can have one."""
