"""Where a state is between data and noise, and the times at which it is looked at."""
