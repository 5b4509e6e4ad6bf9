"""What the front doors take and give."""

from typing import Any

Array = Any
"""An array of NumPy, torch or CuPy; all of one call are of one library and on one device, and so are the results.

The acceptance rules, sampling and the experts' ops take nested lists for NumPy's. No type says all this: a protocol
would refuse the lists, and hide from the caller what a result can do.
"""
