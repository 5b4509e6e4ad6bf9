"""Property tests of every op against the reference, for any backend: `zigzag conform NAME` runs them.

Shipped as `zigzag.conformance`, without `internals/`, whose tests are of the built-in backends only. `strategies` draws
inputs, `tolerance` judges numbers, `compare` repeats a call that failed: they are for tests of your own too.
"""

from math import inf, nan

from zigzag.conformance.example import compare

__all__ = ["compare", "inf", "nan"]
