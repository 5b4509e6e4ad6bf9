"""A draft model that learns from what the target says while it serves (Online SD, arXiv 2310.07177)."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zigzag.generation.drafting.draft import Draft, Request
from zigzag.generation.drafting.model import ModelDrafter
from zigzag.generation.drafting.termination import Fixed
from zigzag.models.draft_heads.files import own_weights
from zigzag.plans.layers import LayerPlan
from zigzag.reference.checks import check_count
from zigzag.reference.errors import ArgumentError
from zigzag.running.host import Host
from zigzag.running.twins import twin


class OnlineDrafter(ModelDrafter):
    """Drafts as `ModelDrafter`; now and then its model takes a step towards the texts that the target went on with.

    What the target emits is drawn from its own law, so the likelihood of these tokens is KL(target, draft) up to a
    constant. It is lossless as before: a draft's law is that of the weights it was drawn with. The keys and values of
    what was read before a step stay as they are, a little stale.

    model: whose weights that are its own change, those that it shares with a target (`zigzag.load_head("student")`)
        not; it stays changed, also when another call goes on with this drafter
    every: accepted or emitted tokens of all rows between two steps; window: tokens of a text in a step
    rows: texts in a step; most: windows that are remembered, the latest
    learning_rate: of AdamW

    Raises ArgumentError for a model without weights of its own that may change.
    """

    def __init__(
        self,
        model: Any,
        *,
        plan: LayerPlan | None = None,
        stop: Fixed | int = 4,
        every: int = 64,
        window: int = 64,
        rows: int = 8,
        most: int = 64,
        learning_rate: float = 1e-4,
    ) -> None:
        super().__init__(model, plan=plan, stop=stop)
        self.every, self.window = (
            check_count("OnlineDrafter", "every", every),
            check_count("OnlineDrafter", "window", window, least=2),
        )
        self.rows = check_count("OnlineDrafter", "rows", rows)
        shared = own_weights(model)
        self.weights = [weight for name, weight in model.named_parameters() if name in shared]
        if not self.weights or any(weight.is_inference() for weight in self.weights):
            raise ArgumentError(
                "OnlineDrafter: the draft model has no weights of its own that may change; load it outside of "
                "torch.inference_mode()"
            )
        self.optimizer = torch.optim.AdamW(self.weights, lr=learning_rate, weight_decay=0.0)
        self.seen: deque[list[int]] = deque(maxlen=check_count("OnlineDrafter", "most", most))
        self.steps = 0
        self._twin = twin(model)  # the loop holds the attention of the model itself
        self._lengths: list[int] = []  # of each row at the last draft
        self._kept: list[int] = []  # and when a window of it was taken
        self._new = 0

    def open(self, host: Host, vocabulary: int | None = None, stage: int = 0) -> None:
        super().open(host, vocabulary, stage)
        self._lengths, self._kept = [], []

    def draft(self, request: Request) -> Draft:
        self._remember(request.sequences)
        if self._new >= self.every and self.seen:
            self._learn()
            self._new = 0
        return super().draft(request)

    def select(self, rows: Sequence[int]) -> None:
        super().select(rows)
        if self._lengths:
            self._lengths, self._kept = ([each[b] for b in rows] for each in (self._lengths, self._kept))

    def _remember(self, sequences: Sequence[list[int]]) -> None:
        """A window of each row that has grown by half of one; prompts are not the target's words."""
        lengths = [len(row) for row in sequences]
        self._kept = self._kept or list(lengths)
        self._new += sum(lengths) - sum(self._lengths or lengths)
        self._lengths = lengths
        for b, row in enumerate(sequences):
            if len(row) - self._kept[b] >= self.window // 2 and len(row) >= self.window:
                self.seen.append(row[-self.window :])
                self._kept[b] = len(row)

    def _learn(self) -> None:
        """One step on the latest windows."""
        texts = self._readable(list(self.seen)[-self.rows :])
        with torch.inference_mode(False), torch.enable_grad():
            loss = self._loss(torch.tensor(texts, device=self.runner.device))
            grads = torch.autograd.grad(loss, self.weights, allow_unused=True)
            if bool(loss.isfinite()):
                for weight, grad in zip(self.weights, grads, strict=True):
                    weight.grad = grad
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                self.steps += 1

    def _loss(self, tokens: Tensor) -> Tensor:
        """Mean over the second half of each window, which the target has emitted; what comes before is its text."""
        logits = self._twin(input_ids=tokens, use_cache=False).logits[:, :-1].float()
        half = self.window // 2
        behind = logits[:, half - 1 :].flatten(0, 1)
        return torch.nn.functional.cross_entropy(behind, tokens[:, half:].flatten())

    def state(self) -> dict[str, Tensor]:
        """Weights of its own and the optimizer's numbers, to go on from later: `load`."""
        parts: dict[str, Tensor] = {}
        for number, weight in enumerate(self.weights):
            parts[f"weight.{number}"] = weight.detach().clone()
            for key, value in self.optimizer.state.get(weight, {}).items():
                parts[f"{key}.{number}"] = value.detach().clone()
        return parts

    def load(self, state: dict[str, Tensor]) -> None:
        """ArgumentError for the state of a drafter over another model."""
        names = [f"weight.{number}" for number in range(len(self.weights))]
        if any(n not in state or state[n].shape != w.shape for n, w in zip(names, self.weights, strict=True)):
            raise ArgumentError("OnlineDrafter: the state is that of a drafter over another model")
        with torch.no_grad():
            for number, weight in enumerate(self.weights):
                weight.copy_(state[f"weight.{number}"])
                kept = {
                    key: state[f"{key}.{number}"].clone()
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"{key}.{number}" in state
                }
                if kept:
                    self.optimizer.state[weight] = kept
