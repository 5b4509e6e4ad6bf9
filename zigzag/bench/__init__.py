"""`zigzag bench`: each suite in a file, how it is timed in `timing.py`, what a row is in `cases.py`."""
