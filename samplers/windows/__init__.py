"""Which steps are stochastic and which are trained, one rule per file; `type: NAME` is the class in `NAME.py`."""
