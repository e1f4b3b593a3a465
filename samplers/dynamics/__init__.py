"""Rules for one step, one file each; `type: NAME` in a config is the class in `samplers/dynamics/NAME.py`."""
