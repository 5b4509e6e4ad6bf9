"""The version, where every room may read it: what was installed under this name, whose own comes from git's tags."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("zigzag-attention")
except PackageNotFoundError:  # a folder on the path, not installed
    __version__ = "0+unknown"
