"""Drafters one after another within a draft: a better one for its first tokens, cheaper ones for what follows."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zigzag.generation.drafting.draft import Draft, Drafter, Law, Request, padded
from zigzag.generation.drafting.model import ModelDrafter
from zigzag.generation.drafting.parts import check_part, check_stages
from zigzag.reference.checks import check_count
from zigzag.reference.errors import ArgumentError


class RelayDrafter:
    """Each drafter goes on where the one before it ended, for so many tokens; the first tokens are accepted most often.

    A row whose drafter gives fewer tokens than it may ends there: what comes behind would not follow on them.

    parts: (drafter, its tokens at most) each; drafters of chains whose law is known

    Source: CS-Drafting's horizontal cascade (arXiv 2312.11462).
    """

    def __init__(self, *parts: tuple[Drafter, int]) -> None:
        if len(parts) < 2:
            raise ArgumentError(f"RelayDrafter: two parts or more are needed, got {len(parts)}")
        for drafter, tokens in parts:
            check_count("RelayDrafter", "tokens of a part", tokens)
            check_part("RelayDrafter", drafter)
        chosen = [drafter.law == "one-hot" for drafter, _ in parts]
        if chosen != sorted(chosen):
            raise ArgumentError("RelayDrafter: drafters that choose without chance must come after those that draw")
        self.parts = parts
        self.law: Law = "dense" if any(drafter.law == "dense" for drafter, _ in parts) else "one-hot"
        check_stages("RelayDrafter", self.stages)
        self._drafted: list[list[int]] = [[] for _ in parts]  # of each part, by each row in the last round

    @property
    def stages(self) -> tuple[ModelDrafter, ...]:
        """What runs a model, of all parts."""
        return tuple(stage for drafter, _ in self.parts for stage in getattr(drafter, "stages", ()))

    @property
    def longest(self) -> int:
        return sum(min(tokens, drafter.longest) for drafter, tokens in self.parts)

    def draft(self, request: Request) -> Draft:
        texts = [list(row) for row in request.sequences]
        left: NDArray[np.int64] = np.array(request.most, dtype=np.int64)
        going = np.ones(len(texts), dtype=bool)
        drafts: list[Draft] = []
        self._drafted = []
        for drafter, tokens in self.parts:
            most = np.where(going, np.minimum(left, tokens), 0)
            draft = drafter.draft(replace(request, sequences=texts, most=most.tolist(), hidden=None, predictions=None))
            for text, new in zip(texts, draft.rows, strict=True):
                text += new
            left -= draft.counts
            going &= draft.counts == np.minimum(tokens, drafter.longest)
            drafts.append(draft)
            self._drafted.append(draft.counts.tolist())
        ids, counts = padded([text[len(row) :] for text, row in zip(texts, request.sequences, strict=True)])
        return Draft(ids, counts, self._probs(drafts, ids) if self.law == "dense" else None)

    def _probs(self, drafts: Sequence[Draft], ids: NDArray[np.int64]) -> Tensor | None:
        """[B, K, V] what each token was drawn from; of a part that chose without chance a row of one token."""
        known = next((draft.probs for draft in drafts if draft.probs is not None), None)
        if known is None:  # nobody drew anything
            return None
        chosen = torch.from_numpy(np.maximum(ids, 0)).to(known.device)
        rows = torch.zeros(*ids.shape, known.shape[2], dtype=known.dtype, device=known.device)
        rows.scatter_(-1, chosen[..., None], 1.0)
        begin = np.zeros(len(ids), dtype=np.int64)
        for draft in drafts:
            if draft.probs is not None:
                row, own = np.nonzero(np.arange(draft.token_ids.shape[1]) < draft.counts[:, None])
                b, place, n = torch.from_numpy(np.stack([row, begin[row] + own, own])).to(known.device)
                rows[b, place] = draft.probs[b, n]
            begin = begin + draft.counts
        return rows

    def observe(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """Each part is told of its own tokens, once all before them were accepted."""
        before = np.zeros(len(drafted), dtype=np.int64)
        for (drafter, _), counts in zip(self.parts, self._drafted, strict=True):
            # A draft may have been cut at a stop token, or a round had none.
            own = np.clip(np.array(drafted) - before, 0, counts) if any(drafted) else before
            taken = np.clip(np.array(accepted) - before, 0, own)
            asked = np.where(np.array(accepted) >= before, own, 0)
            drafter.observe(asked.tolist(), taken.tolist())
            before = before + own

    def select(self, rows: Sequence[int]) -> None:
        for drafter, _ in self.parts:
            drafter.select(rows)
