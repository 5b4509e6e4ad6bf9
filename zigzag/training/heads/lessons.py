"""What each kind of head says of a row of tokens, beside what the target says at the same places.

A lesson is a position of drafts (0: the first token that is drafted), the head's logits for some places, and the
target's distribution there. Losses and acceptance come of nothing else.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zigzag.models.draft_heads.exit_layer import ExitLayer
from zigzag.models.draft_heads.lookahead import LookaheadVectors
from zigzag.models.draft_heads.positions import PositionHeads
from zigzag.models.state_head import StateHead

GROUPS = 16  # places of a row behind which look-ahead vectors are put


class Lesson(NamedTuple):
    """position: of the draft; logits: [B, n, V] the head's; target: [B, n, V] the target's probabilities there; state:
    how far the head's own states are from the target's, 0 where it has none"""

    position: int
    logits: Tensor
    target: Tensor
    state: Tensor | float = 0.0


class Taught(NamedTuple):
    """Of a batch: its tokens [B, T], the target's final states [B, T, hidden], those before layer `index` of an
    `ExitLayer`, else None, and its probabilities [B, T, V]."""

    tokens: Tensor
    states: Tensor
    early: Tensor | None
    probs: Tensor


def taught(main: Any, head: Any, tokens: Tensor) -> Taught:
    """One forward of the target, of which nothing is learned."""
    with torch.no_grad():
        exits = isinstance(head, ExitLayer)
        output = main.get_decoder()(input_ids=tokens, use_cache=False, output_hidden_states=exits)
        probs = main.lm_head(output.last_hidden_state).float().softmax(dim=-1)
        early = output.hidden_states[head.index] if exits else None
    return Taught(tokens, output.last_hidden_state, early, probs)


def lessons(main: Any, head: Any, given: Taught, depth: int, seed: int) -> Iterator[Lesson]:
    """Of every position in turn; seed: for the places of look-ahead vectors"""
    if isinstance(head, PositionHeads):
        yield from _of_positions(head, given)
    elif isinstance(head, StateHead):
        yield from _of_states(head, given, depth)
    elif isinstance(head, ExitLayer):
        yield Lesson(0, main.lm_head(main.get_decoder().norm(_behind(main, head, given))), given.probs)
    elif isinstance(head, LookaheadVectors):
        yield from _of_vectors(main, head, given, seed)
    else:
        yield Lesson(0, head(input_ids=given.tokens, use_cache=False).logits, given.probs)


def _of_positions(head: PositionHeads, given: Taught) -> Iterator[Lesson]:
    length = given.tokens.shape[1]
    for k in range(1, head.count + 1):
        since = torch.stack([given.tokens[:, j : length - k + j] for j in range(1, k + 1)], dim=-1)
        yield Lesson(k - 1, head(k, given.states[:, : length - k], since), given.probs[:, k:])


def _of_states(head: StateHead, given: Taught, depth: int) -> Iterator[Lesson]:
    """Pair i joins a state of position i with the token at i + 1; from the second draft on the states are its own."""
    length = given.tokens.shape[1]
    states = given.states[:, :-1]
    for k in range(min(depth, length - 1)):
        tokens = given.tokens[:, k + 1 :]
        places = torch.arange(k, length - 1, device=tokens.device)[None]
        own = head.states(tokens, hidden=states, position_ids=places)
        far = (own.float() - given.states[:, k + 1 :].float()).abs().clamp(max=10).mean()
        yield Lesson(k, head.lm_head(own), given.probs[:, k + 1 :], far)
        states = own[:, :-1]


def _behind(main: Any, head: ExitLayer, given: Taught) -> Tensor:
    states = given.early
    places = torch.arange(given.tokens.shape[1], device=given.tokens.device)[None]
    rotary = main.get_decoder().rotary_emb(states, places)
    found: Tensor = head(states, attention_mask=None, position_ids=places, position_embeddings=rotary)
    return found


def _of_vectors(main: Any, head: LookaheadVectors, given: Taught, seed: int) -> Iterator[Lesson]:
    """Behind some places of each row stand all vectors; a vector sees its place's text and the vectors before it."""
    rows, length = given.tokens.shape
    count, device = head.count, given.tokens.device
    drawn = torch.Generator().manual_seed(seed)
    groups = min(GROUPS, length - count - 1)
    places = torch.randperm(length - count - 1, generator=drawn)[:groups].sort().values.to(device)
    embedded = main.get_decoder().embed_tokens(given.tokens)
    vectors = head.vectors.to(embedded.dtype).repeat(groups, 1).expand(rows, -1, -1)
    ahead = (places[:, None] + torch.arange(1, count + 1, device=device)).flatten()
    positions = torch.cat([torch.arange(length, device=device), ahead])[None]
    mask = _sees(places, length, count)
    bias = torch.zeros_like(mask, dtype=embedded.dtype).masked_fill(~mask, torch.finfo(embedded.dtype).min)
    output = main.get_decoder()(
        inputs_embeds=torch.cat([embedded, vectors], dim=1),
        position_ids=positions,
        attention_mask=bias[None, None],
        use_cache=False,
    ).last_hidden_state[:, length:]
    logits = main.lm_head(output).view(rows, groups, count, -1)
    for k in range(count):  # the vector at place + k + 1 has the row of the token after it
        yield Lesson(k + 1, logits[:, :, k], given.probs[:, places + k + 1])


def _sees(places: Tensor, length: int, count: int) -> Tensor:
    """[length + groups * count] squared, whether a query sees a key."""
    device, groups = places.device, len(places)
    text, group = torch.arange(length, device=device), torch.arange(groups, device=device).repeat_interleave(count)
    inner = torch.arange(count, device=device).repeat(groups)
    among = text[:, None] >= text[None]
    ahead = places[group][:, None] >= text[None]
    together = (group[:, None] == group[None]) & (inner[:, None] >= inner[None])
    none = torch.zeros(length, groups * count, dtype=torch.bool, device=device)
    return torch.cat([torch.cat([among, none], dim=1), torch.cat([ahead, together], dim=1)], dim=0)


def overlap(lesson: Lesson) -> Tensor:
    """Mean probability with which such a draft is accepted: sum of min(p, q), arXiv 2211.17192."""
    return torch.minimum(lesson.target, lesson.logits.float().softmax(dim=-1)).sum(dim=-1).mean()


def divergence(lesson: Lesson, kind: str) -> Tensor:
    """KL(target, head) up to the target's own entropy, or KL(head, target), a mean over places."""
    own = lesson.logits.float().log_softmax(dim=-1)
    if kind == "forward":
        return -(lesson.target * own).sum(dim=-1).mean()
    return (own.exp() * (own - lesson.target.clamp(min=1e-9).log())).sum(dim=-1).mean()
