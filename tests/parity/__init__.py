"""Property tests of every op against the reference, for any backend: `zigzag conform NAME` runs them.

Shipped as `zigzag.conformance`, without `internals/`, whose tests are of the built-in backends only.
"""
