"""`visalign profile`: where the time of a run's steps goes."""
