"""How likely a model finds continuations of contexts under a plan: what multiple choice and perplexity are made of."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from zigzag.defaults import SPARE
from zigzag.models.decoder import Decoder
from zigzag.plans.heads import Plan
from zigzag.plans.opened import opened
from zigzag.reference.checks import check_count
from zigzag.reference.errors import ArgumentError
from zigzag.running.host import Host
from zigzag.running.interception import attachment_of
from zigzag.running.opening import open_runner
from zigzag.running.rope import check_lengths
from zigzag.running.runner import Runner

PIECE = 128  # tokens of a row whose logits are held at once

Advance = Callable[[int], object]


class Likelihood(NamedTuple):
    """log_prob: natural logarithm of a continuation's probability; is_greedy: greedy decoding would write it, too."""

    log_prob: float
    is_greedy: bool


class _Group(NamedTuple):
    """A context, and of its continuations the places among all pairs and the tokens."""

    context: list[int]
    places: list[int]
    continuations: list[list[int]]


def likelihoods(
    model: Decoder,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    plan: Plan | str | Path | None = None,
    batch_size: int = 1,
    advance: Advance | None = None,
) -> list[Likelihood]:
    """Of each pair (context, continuation) of tokens how likely the continuation is, one token each at least.

    plan: LayerPlan or HeadPlan to run under, or the file of one; default: the attached one, else full attention
    batch_size: contexts in one forward. Continuations of one context share it: it is computed once
    advance: called with the number of pairs that are done

    Logits are cast to float32, their logarithms summed in float64. Of a context the last token is fed with the
    continuation, whose own last token is not fed.
    Raises ArgumentError for an empty context or continuation, and for a token outside the vocabulary; ModelError where
    the model cannot be run here; PlanError for a plan of another model.
    """
    check_count("likelihoods", "batch_size", batch_size)
    groups = _groups(pairs, int(model.config.get_text_config(decoder=True).vocab_size))
    if not groups:
        return []
    given, attached = opened(plan), attachment_of(model)
    chosen = given if given is not None or attached is None else attached.plan
    lengths = [len(context) + len(continuation) - 1 for context, continuation in pairs]
    check_lengths(model, min(len(group.context) for group in groups), max(lengths))
    found: list[Likelihood | None] = [None] * len(pairs)
    several = any(len(group.places) > 1 for group in groups)  # then each is taken back before the next one
    longest = max(len(continuation) for _, continuation in pairs)
    with Host(model, cuda_graphs=False) as host, torch.inference_mode():
        runner = open_runner(host, chosen, spare=max(SPARE, longest) if several else SPARE)
        for begin in range(0, len(groups), batch_size):
            batch = groups[begin : begin + batch_size]
            runner.reset()
            _score(runner, batch, found)
            if advance is not None:
                advance(sum(len(group.places) for group in batch))
    return [one for one in found if one is not None]


def _groups(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], vocabulary: int) -> list[_Group]:
    """By context, the longest first: neighbours are of like lengths, and what is too large fails at once."""
    groups: dict[tuple[int, ...], _Group] = {}
    for place, (context, continuation) in enumerate(pairs):
        if not len(context) or not len(continuation):
            raise ArgumentError(
                f"likelihoods: a context and a continuation of at least one token each are needed, pair {place} has "
                f"{len(context)} and {len(continuation)}"
            )
        outside = [token for token in (*context, *continuation) if not 0 <= token < vocabulary]
        if outside:
            raise ArgumentError(f"likelihoods: pair {place} has token {outside[0]}, outside [0, {vocabulary})")
        group = groups.setdefault(tuple(context), _Group(list(context), [], []))
        group.places.append(place)
        group.continuations.append(list(continuation))
    return sorted(groups.values(), key=lambda group: -len(group.context))


def _score(runner: Runner, batch: Sequence[_Group], found: list[Likelihood | None]) -> None:
    """All continuations of some contexts, one of each context at a time."""
    runner.fill([group.context[:-1] for group in batch])
    most = max(len(group.places) for group in batch)
    for turn in range(most):
        rows = [group.continuations[turn] if turn < len(group.places) else [] for group in batch]
        scored = _of_rows(runner, [group.context[-1] for group in batch], rows)
        for group, one in zip(batch, scored, strict=True):
            if turn < len(group.places):
                found[group.places[turn]] = one
        if turn + 1 < most:
            runner.keep([[]] * len(batch), [[]] * len(batch))


def _of_rows(runner: Runner, last: Sequence[int], rows: Sequence[Sequence[int]]) -> list[Likelihood]:
    """Of one continuation of each row behind its context's last token; shorter ones are followed by what is not read.

    What follows a token changes none of the logits up to it.
    """
    width = max(map(len, rows))
    wanted = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=runner.device)
    counts = torch.tensor([len(row) for row in rows], device=runner.device)
    fed = torch.cat([torch.tensor(last, device=runner.device)[:, None], wanted[:, :-1]], dim=1)
    sums = torch.zeros(len(rows), dtype=torch.float64, device=runner.device)
    greedy = torch.ones(len(rows), dtype=torch.bool, device=runner.device)
    for begin in range(0, width, PIECE):
        part = slice(begin, begin + PIECE)
        logits = runner.feed(fed[:, part]).logits
        read = torch.arange(begin, begin + logits.shape[1], device=runner.device) < counts[:, None]
        sums += torch.where(read, _log_probs(logits, wanted[:, part]), 0.0).sum(dim=1)
        greedy &= ((logits.argmax(dim=-1) == wanted[:, part]) | ~read).all(dim=1)
    return [Likelihood(*each) for each in zip(sums.tolist(), greedy.tolist(), strict=True)]


def _log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """[B, T] in float64, of logits [B, T, V]."""
    logits = logits.float()
    return (logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(dim=-1)).double()
