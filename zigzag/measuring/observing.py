"""Looking at the attention of every full layer in forwards of whole prompts, and one number a head of what was seen."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zigzag.measuring.answers import batches
from zigzag.measuring.prompts import Prompt
from zigzag.models.decoder import Decoder
from zigzag.plans.window import Mask
from zigzag.reference.errors import ModelError
from zigzag.running.interception import States, full_attention, intercepted, layer_index
from zigzag.running.model_layers import check_may_stream, layers_of

Advance = Callable[[int], object]
Score = Callable[[Decoder, Sequence[Prompt], Mask, int, Advance], NDArray[np.float64]]
Rows = Callable[[Decoder, Sequence[Prompt]], Tensor]


class Seen(NamedTuple):
    """A layer's states of whole prompts `ids` [B, T], whose last `answers` tokens are the answer's; window: to be."""

    states: States
    ids: Tensor
    answers: int
    window: Mask

    @property
    def asking(self) -> Tensor:
        """Positions of the queries that say the answer's tokens: those of the tokens before."""
        length = self.ids.shape[1]
        return torch.arange(length - self.answers - 1, length - 1, device=self.ids.device)


def heads_of(model: Decoder) -> tuple[int, int]:
    """(layers with full attention, KV heads of each); ModelError for a model that cannot stream."""
    layers = layers_of(model)
    check_may_stream("calibrate", layers)
    return len(layers.full), layers.num_kv_heads


def check_no_sinks(method: str, states: States) -> None:
    """ModelError for learned sinks: the scores of ops know only the keys."""
    if states.sinks is not None:
        raise ModelError(f"calibrate: {method} does not know this model's learned sinks; use method='layer_loss'")


def prompt_rows(model: Decoder, prompts: Sequence[Prompt]) -> Tensor:
    """[B, T] the prompts as they are, answers included."""
    return torch.tensor([prompt.input_ids for prompt in prompts], device=model.device)


def by_head(measure: Callable[[Seen], Tensor], rows: Rows = prompt_rows) -> Score:
    """The score that averages `measure` [B, H] over prompts; the largest head of a group counts.

    rows: [B, T] what is fed for prompts of one length
    """

    def score(
        model: Decoder, prompts: Sequence[Prompt], window: Mask, batch_size: int, advance: Advance
    ) -> NDArray[np.float64]:
        num_layers, num_kv_heads = heads_of(model)
        sums: list[Tensor | float] = [0.0] * num_layers
        full = layers_of(model).full
        fed: list[Seen] = []  # the batch under way, but for its states

        def attend(module: nn.Module, states: States) -> Tensor:
            check_no_sinks("this method", states)
            sums[full.index(layer_index(module))] += measure(fed[-1]._replace(states=states)).double().sum(dim=0)
            return full_attention(module, states)

        with intercepted(model, attend), torch.inference_mode():
            for group in batches(prompts, batch_size):
                chosen = [prompts[i] for i in group]
                ids = rows(model, chosen)
                fed[:] = [Seen(None, ids, len(chosen[0].answer_ids), window)]  # type: ignore[arg-type]
                model(input_ids=ids, use_cache=False, logits_to_keep=1)
                advance(len(group))
            by_query_head = torch.stack([torch.as_tensor(s) for s in sums]) / len(prompts)
            by_head: Tensor = by_query_head.unflatten(1, (num_kv_heads, -1)).amax(dim=-1)
            return np.asarray(by_head.cpu(), dtype=np.float64)

    return score


def weights_of(states: States, positions: Tensor) -> Tensor:
    """[B, H, n, T] attention probabilities in float32 of the queries at `positions` [n] of whole prompts."""
    query, key = states.query[:, :, positions].float(), states.key.float()
    grouped = query.unflatten(1, (key.shape[1], -1))
    scale = query.shape[-1] ** -0.5 if states.scale is None else states.scale
    scores = torch.einsum("bgsqd,bgkd->bgsqk", grouped, key) * scale
    later = torch.arange(key.shape[2], device=key.device) > positions[:, None]
    return scores.masked_fill(later, -torch.inf).softmax(dim=-1).flatten(1, 2)
