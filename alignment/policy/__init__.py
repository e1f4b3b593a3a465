"""The policy: a pipeline, its trained weights, sampling and replay."""
