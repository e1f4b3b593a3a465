"""What a run cannot be, told before anything is loaded: the checks of one part of it each."""
