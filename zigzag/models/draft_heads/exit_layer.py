"""A layer of its own behind the target's first layers, from which the target's norm and head then draft.

Kangaroo's adapter (arXiv 2404.18911) is attention and norms; this is a whole layer of the target's kind.
"""

from typing import Any

from torch import Tensor, nn

from zigzag.models.state_head import begin_as, check_main
from zigzag.reference.errors import ArgumentError


class ExitLayer(nn.Module):
    """Takes the place of the target's layer `index` in drafts, with its part of their cache; those behind are left out.

    Raises ArgumentError unless there are layers before and behind it.
    """

    _shared: tuple[nn.Module]

    def __init__(self, main: Any, index: int) -> None:
        check_main("ExitLayer", main)
        super().__init__()
        decoder = main.get_decoder()
        if not 0 < index < len(decoder.layers):
            raise ArgumentError(f"ExitLayer: index must be 1 to {len(decoder.layers) - 1}, got {index}")
        self.index, self.num_layers = index, len(decoder.layers)
        # The target's own configuration, not a copy: it says where attention goes.
        self.layer = type(decoder.layers[index])(decoder.layers[index].self_attn.config, index)
        begin_as(self.layer, decoder.layers[index])
        self._shared = (decoder.embed_tokens,)  # in a tuple, so that it is not its own
        self.to(main.device, main.dtype)
        self.train(False)

    @property
    def main_embedding(self) -> nn.Module:
        """Of the model that this layer is for."""
        return self._shared[0]

    @property
    def skip(self) -> frozenset[int]:
        """The target's layers that a draft leaves out, the one whose place this takes included."""
        return frozenset(range(self.index, self.num_layers))

    def forward(self, hidden_states: Tensor, *given: Any, **options: Any) -> Tensor:
        found: Tensor = self.layer(hidden_states, *given, **options)
        return found
