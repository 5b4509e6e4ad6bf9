"""A second set of modules over a model's weights, to be run while the attention of the first is taken."""

from copy import deepcopy
from typing import Any

from zigzag.models.decoder import Decoder


def twin(model: Decoder) -> Any:
    """A copy of a model's modules that holds the same tensors; what is done to the modules of one is not to the other.

    Not even a replaced tensor is missed, since they are held in the same dictionaries.
    """
    shared: dict[int, Any] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            shared.update({id(each): each for each in (held, *held.values()) if each is not None})
    return deepcopy(model, shared).eval()
