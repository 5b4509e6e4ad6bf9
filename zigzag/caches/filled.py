"""Keys and values of a cache layer that holds some."""

from torch import Tensor
from transformers.cache_utils import DynamicLayer

from zigzag.reference.errors import CacheError


def filled(layer: DynamicLayer) -> tuple[Tensor, Tensor]:
    """(keys, values) of the layer; CacheError if it has never been fed."""
    if layer.keys is None or layer.values is None:
        raise CacheError(f"{type(layer).__name__} holds nothing yet: a forward must come first")
    return layer.keys, layer.values
