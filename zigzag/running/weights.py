"""A model's weights: whether they still are those that a cache was filled with; a model held still for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zigzag.models.decoder import Decoder
from zigzag.running.shards import local

_ADAPTERS = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")  # of PEFT's layers


def weights_state(model: Any) -> int:
    """A number that another one follows where weights are replaced or changed in place, or adapters are switched.

    Buffers count (GLM's biases that choose experts), but not frequencies of rotary embeddings, which forwards change.
    What lies in neither (packed weights), or is changed through `.data`, is not seen.
    """
    own = [each for module in model.modules() for each in module.named_buffers(recurse=False)]
    buffers = [buffer for name, buffer in own if not name.endswith("inv_freq")]
    weights = [
        (w.data_ptr(), 0 if w.is_inference() else w._version) for w in map(local, [*model.parameters(), *buffers])
    ]
    layers = [module for module in model.modules() if isinstance(getattr(module, "disable_adapters", None), bool)]
    adapters = [[repr(getattr(layer, name, None)) for name in _ADAPTERS] for layer in layers]
    return hash((tuple(weights), repr(adapters)))


@contextmanager
def frozen(model: Decoder) -> Iterator[None]:
    """No gradients for the weights: the backward pass then costs twice a forward, not three times."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def evaluating(model: Decoder) -> Iterator[None]:
    """In evaluation within the block; afterwards each module is as it was."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
