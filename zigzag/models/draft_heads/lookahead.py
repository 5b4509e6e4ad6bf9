"""Vectors that stand for tokens not yet known: fed behind a text, the target's rows there are drafts.

PaSS' look-ahead tokens (arXiv 2311.13581) and BiTA's mask tokens (arXiv 2401.12522) are such embeddings; BiTA's
prompts in front of the text are not here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zigzag.models.state_head import check_main
from zigzag.reference.checks import check_count


class LookaheadVectors(nn.Module):
    """`count` embeddings: token V + i of a text, V the rows of the model's own embedding, is the i-th of them."""

    _shared: tuple[nn.Module]

    def __init__(self, main: Any, count: int) -> None:
        check_main("LookaheadVectors", main)
        super().__init__()
        embedding = main.get_decoder().embed_tokens.weight
        self.count, self.first = check_count("LookaheadVectors", "count", count), len(embedding)
        self.vectors = nn.Parameter(embedding.detach().mean(dim=0).repeat(self.count, 1))
        self._shared = (main.get_decoder().embed_tokens,)  # in a tuple, so that it is not its own
        self.to(main.device, main.dtype)
        self.train(False)

    @property
    def main_embedding(self) -> nn.Module:
        """Of the model that these vectors are for."""
        return self._shared[0]

    @contextmanager
    def applied(self, decoder: Any) -> Iterator[None]:
        """Within the block the decoder's embedding knows these tokens too."""
        embedding = decoder.embed_tokens
        before, own = vars(embedding).get("forward"), embedding.forward

        def forward(ids: Tensor) -> Tensor:
            known: Tensor = own(ids.clamp(max=self.first - 1))
            ours = self.vectors[(ids - self.first).clamp(min=0)].to(known.dtype)
            return torch.where((ids >= self.first)[..., None], ours, known)

        try:
            embedding.forward = forward
            yield
        finally:
            if before is None:
                vars(embedding).pop("forward", None)
            else:
                embedding.forward = before
