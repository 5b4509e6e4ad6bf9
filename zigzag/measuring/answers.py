"""Does the model still find the passkey? Exact retrieval and loss on the answer, by teacher forcing."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zigzag.measuring.prompts import Prompt
from zigzag.models.decoder import Decoder
from zigzag.reference.errors import ArgumentError


@dataclass(frozen=True)
class Answers:
    """Per prompt: `right` whether every answer token is the argmax; `losses` mean nats per answer token."""

    right: tuple[bool, ...]
    losses: tuple[float, ...]

    @property
    def num_right(self) -> int:
        return sum(self.right)

    @property
    def loss(self) -> float:
        """Mean over the prompts."""
        return sum(self.losses) / len(self.losses)


def answer(
    model: Decoder,
    prompts: Sequence[Prompt],
    *,
    batch_size: int = 1,
    advance: Callable[[int], object] = lambda count: None,
) -> Answers:
    """Feed each prompt with its answer and see what the model would have said in the answer's places.

    Greedy decoding gives exactly the answer iff every answer token is the argmax, so one forward suffices.
    prompts: of equal or different lengths; batches are made of equal ones.
    advance: called with the number of prompts done, for progress bars.
    """
    results: dict[int, tuple[bool, float]] = {}
    for group in batches(prompts, batch_size):
        with torch.inference_mode():
            losses, right = answer_losses(model, [prompts[i] for i in group])
        results |= {i: (bool(r), float(x)) for i, r, x in zip(group, right.tolist(), losses.tolist(), strict=True)}
        advance(len(group))
    ordered = [results[i] for i in range(len(prompts))]
    return Answers(tuple(r for r, _ in ordered), tuple(x for _, x in ordered))


def answer_losses(model: Decoder, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
    """(loss [B], right [B]) of prompts of one length: mean cross-entropy, and whether all tokens are the argmax."""
    logits, target = answer_logits(model, prompts)
    return mean_losses(logits, target), (logits.argmax(dim=-1) == target).all(dim=1)


def mean_losses(logits: Tensor, target: Tensor) -> Tensor:
    """[B] mean cross-entropy of the ids `target` [B, n] under logits [B, n, V]."""
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), target, reduction="none").mean(dim=1)


def answer_log_odds(model: Decoder, prompts: Sequence[Prompt], **inputs: Any) -> Tensor:
    """[B] mean over the answer's tokens of log(p / (1 - p)); differentiable.

    Unlike the cross-entropy, its slope does not vanish where the model is already sure (p near 1).
    """
    logits, target = answer_logits(model, prompts, **inputs)
    chosen = target.unsqueeze(-1)
    others = logits.scatter(-1, chosen, -torch.inf).logsumexp(dim=-1)
    return (logits.gather(-1, chosen).squeeze(-1) - others).mean(dim=1)


def answer_logits(model: Decoder, prompts: Sequence[Prompt], **inputs: Any) -> tuple[Tensor, Tensor]:
    """(logits [B, n, V], answer ids [B, n]) for prompts of one length; `inputs` replaces input_ids if given."""
    ids = torch.tensor([p.input_ids for p in prompts], device=model.device)
    count = len(prompts[0].answer_ids)
    inputs = inputs or {"input_ids": ids}
    logits = model(**inputs, use_cache=False, logits_to_keep=count + 1).logits[:, :-1].float()
    return logits, ids[:, -count:]


def batches(prompts: Sequence[Prompt], size: int) -> Iterable[list[int]]:
    """Indices of the prompts in groups of at most `size`, each of one length and answer length."""
    if not prompts:
        raise ArgumentError("at least one prompt is needed, got none")
    if size < 1:
        raise ArgumentError(f"batch_size must be at least 1, got {size}")
    for i, prompt in enumerate(prompts):
        if not prompt.prompt_ids or not prompt.answer_ids:
            what = "answer" if prompt.prompt_ids else "prompt"
            raise ArgumentError(f"the {what} of prompts[{i}] must have at least one token, got none")
    groups: dict[tuple[int, int], list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault((len(prompt.prompt_ids), len(prompt.answer_ids)), []).append(i)
    for members in groups.values():
        yield from (members[i : i + size] for i in range(0, len(members), size))
