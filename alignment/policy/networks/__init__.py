"""The networks of a pipeline: loaded, and what of them is trained."""
