"""Drafters in a row: what drafts for the target is itself drafted for."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zigzag import ops
from zigzag.generation.drafting.draft import Draft, Drafter, Request, padded
from zigzag.generation.drafting.model import ModelDrafter
from zigzag.generation.drafting.parts import check_part, check_stages
from zigzag.generation.drafting.vocabulary import fitted
from zigzag.plans.layers import LayerPlan
from zigzag.reference.checks import check_count
from zigzag.reference.errors import ModelError
from zigzag.running.transfers import to_device


class StagedDrafter(ModelDrafter):
    """Draws chains from a model's own distribution by speculative sampling: another drafter drafts for the model.

    The law of a draft is that of the model alone, whatever drafts for it, since the rule between them is lossless: so
    the rows that `probs` holds are the model's. Each stage has coins of its own, or the law would be lost.

    drafter: of the model: chains of a known law, as a `StagedDrafter`, a `ModelDrafter`, a `LookupDrafter`
    length: tokens of a draft; the inner drafter drafts as many at once as it does for any target
    model, plan, skip: as of `ModelDrafter`

    Sources: staged speculative decoding (arXiv 2308.04623), CS-Drafting's vertical cascade (2312.11462), TriForce's
    hierarchy (2404.11912).
    """

    def __init__(
        self,
        model: Any = None,
        *,
        drafter: Drafter,
        length: int = 8,
        plan: LayerPlan | None = None,
        skip: Collection[int] = (),
    ) -> None:
        self.length = check_count("StagedDrafter", "length", length)
        super().__init__(model, plan=plan, skip=skip, stop=self.length)
        check_part("StagedDrafter", drafter)
        self.drafter = drafter
        check_stages("StagedDrafter", self.stages)

    @property
    def stages(self) -> tuple[ModelDrafter, ...]:
        return self, *getattr(self.drafter, "stages", ())

    def draft(self, request: Request) -> Draft:
        texts = [list(row) for row in request.sequences]
        left = np.minimum(np.asarray(request.most, dtype=np.int64), self.length)
        if not left.any():
            return Draft(*padded([[] for _ in texts]))
        self.runner.fill(self._readable([row[:-1] for row in texts]))
        rows: list[list[Tensor]] = [[] for _ in texts]
        for turn in range(self.length):  # each gives every row that goes on a token
            if not left.any():
                break
            self._turn(request, texts, left, rows, request.round_ * self.length + turn)
        new = [text[len(row) :] for text, row in zip(texts, request.sequences, strict=True)]
        ids, counts = padded(new)
        return Draft(ids, counts, pad_sequence([torch.cat(row) for row in rows], batch_first=True))

    def _turn(
        self, request: Request, texts: list[list[int]], left: NDArray[np.int64], rows: list[list[Tensor]], round_: int
    ) -> None:
        """A round between this stage's model and its drafter: `texts` grow, `rows` hold what was drawn from.

        left: of each row how many tokens it may still have, less afterwards
        """
        most = np.maximum(left - 1, 0).tolist()
        asked = Request(
            texts, most, request.seeds, round_, request.to_probs, static=request.static, greedy=request.greedy
        )
        draft = self.drafter.draft(asked)
        draft.check(self.drafter, len(texts), self._target)
        sent = np.concatenate([[[row[-1]] for row in texts], np.maximum(draft.token_ids, 0), draft.counts[:, None]], 1)
        received = to_device(torch.from_numpy(sent), self.runner.device)
        fed, counts = received[:, :-1], received[:, -1].contiguous()
        logits = self._rows(self._feed(fed))
        probs = [
            request.to_probs(logits[:, n], _with_drafts(texts, draft.token_ids[:, :n])) for n in range(fed.shape[1])
        ]
        own = torch.stack(probs, dim=1)
        coins = self.uniforms(request.seeds, round_, fed.shape[1])
        verdict = ops.verify_residual(
            fed[:, 1:], draft.probs, own, coins, num_draft_tokens=counts, validate=False
        )  # fmt: skip
        found = torch.cat([verdict.output_token_ids, verdict.num_accepted[:, None]], dim=1).tolist()  # one transfer
        accepted = [row.pop() for row in found]
        if min(tokens[0] for tokens in found) < 0:
            raise ModelError("StagedDrafter: a draft model gave logits that are NaN or all -inf")
        nodes, held = [], []
        for b, text in enumerate(texts):
            tokens = found[b][: min(accepted[b] + 1, int(left[b]))]
            nodes.append(range(len(tokens)))
            held.append([text[-1], *tokens[:-1]] if tokens else [])
            rows[b].append(own[b, : len(tokens)])
            text += tokens
            left[b] -= len(tokens)
        self.runner.keep(nodes, self._readable(held))
        self.drafter.observe(draft.counts.tolist(), accepted)

    def _rows(self, logits: Tensor) -> Tensor:
        """[B, T, V] as the target's vocabulary is."""
        shape = logits.shape
        return fitted(logits.flatten(0, 1), self._target).view(*shape[:2], -1)

    def observe(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """The length of a draft is given; the stage within has been told of its own."""

    def select(self, rows: Sequence[int]) -> None:
        super().select(rows)
        self.drafter.select(rows)


def _with_drafts(texts: list[list[int]], drafted: NDArray[np.int64]) -> Any:
    """The texts with drafts behind them, made only if somebody looks."""
    return lambda: [[*text, *new] for text, new in zip(texts, drafted.tolist(), strict=True)]
