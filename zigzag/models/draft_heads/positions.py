"""Heads without keys and values: each says from the target's state what token comes some places further on.

Head k of a state that has said token t drafts token t + k. All share the target's own head, the map from states to the
vocabulary.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from zigzag.models.state_head import check_main
from zigzag.reference.checks import check_count


class PositionHeads(nn.Module, ABC):
    """`count` heads on the target's final states; a subclass says what a head is.

    reads_tokens: whether a head looks at the tokens before the one it drafts
    """

    reads_tokens: ClassVar[bool] = False
    _shared: tuple[nn.Module, nn.Module]

    def __init__(self, main: Any, count: int, width: int) -> None:
        name = type(self).__name__
        check_main(name, main)
        super().__init__()
        self.count, self.width = check_count(name, "count", count), check_count(name, "width", width)
        self.size = main.config.get_text_config(decoder=True).hidden_size
        self._shared = (main.get_decoder().embed_tokens, main.lm_head)  # in a tuple, so that they are not its own
        self.heads = nn.ModuleList(self._head(k) for k in range(1, self.count + 1))
        self.to(main.device, main.dtype)
        self.train(False)

    @abstractmethod
    def _head(self, k: int) -> nn.Module:
        """From what head k reads, [..., (1 + k or 1) * hidden], to what is added to the state."""

    @property
    def main_embedding(self) -> nn.Module:
        """Of the model that these heads are for."""
        return self._shared[0]

    def __call__(self, k: int, states: Tensor, tokens: Tensor) -> Tensor:
        found: Tensor = super().__call__(k, states, tokens)
        return found

    def forward(self, k: int, states: Tensor, tokens: Tensor) -> Tensor:
        """Logits [..., V] of head k, 1 to `count`.

        states: [..., hidden] the target's; tokens: [..., k] what came since: the target's own next one, then drafts
        """
        read = states
        if self.reads_tokens:
            read = torch.cat([states, self._shared[0](tokens).flatten(-2)], dim=-1)
        logits: Tensor = self._shared[1](states + self.heads[k - 1](read))
        return logits


class BlockwiseHeads(PositionHeads):
    """A layer of `width` and a projection back each, added to the state (arXiv 1811.03115, section 4)."""

    def _head(self, k: int) -> nn.Module:
        return _Perceptron(self.size, self.width, self.size)


class MedusaHeads(PositionHeads):
    """One square layer each, added to the state (arXiv 2401.10774, equation 1); the last projection is the target's."""

    def _head(self, k: int) -> nn.Module:
        return _Square(self.size)


class HydraHeads(PositionHeads):
    """A layer of `width` over the state and the embeddings of all tokens since it (arXiv 2402.05109)."""

    reads_tokens = True

    def _head(self, k: int) -> nn.Module:
        return _Perceptron(self.size * (1 + k), self.width, self.size)


class _Perceptron(nn.Module):
    def __init__(self, size: int, width: int, out: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(size, width), nn.Linear(width, out)
        nn.init.zeros_(self.down.weight)  # so that it begins as the target's own head
        nn.init.zeros_(self.down.bias)

    def forward(self, states: Tensor) -> Tensor:
        found: Tensor = self.down(silu(self.up(states)))
        return found


class _Square(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        return silu(self.linear(states))
