"""Whether a model still is what a cache was filled with: keys and values are those of its weights and adapters."""

from zigzag.models.decoder import Decoder

_ADAPTERS = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")  # of PEFT's layers


def weights_state(model: Decoder) -> int:
    """A number that another one follows where weights are replaced or changed in place, or adapters are switched.

    Buffers count (GLM's biases that choose experts), but not frequencies of rotary embeddings, which forwards change.
    What lies in neither (packed weights), or is changed through `.data`, is not seen.
    """
    own = [each for module in model.modules() for each in module.named_buffers(recurse=False)]
    buffers = [buffer for name, buffer in own if not name.endswith("inv_freq")]
    weights = [(w.data_ptr(), 0 if w.is_inference() else w._version) for w in [*model.parameters(), *buffers]]
    layers = [module for module in model.modules() if isinstance(getattr(module, "disable_adapters", None), bool)]
    adapters = [[repr(getattr(layer, name, None)) for name in _ADAPTERS] for layer in layers]
    return hash((tuple(weights), repr(adapters)))
