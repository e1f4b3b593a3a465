"""The training of a run: set up, the loop, processes, evaluation."""
