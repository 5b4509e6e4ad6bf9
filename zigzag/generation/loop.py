"""`zigzag.generate`: draft, verify, commit, until every row is done. docs/generation.md says why it is right."""

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zigzag.generation.distribution import Distribution
from zigzag.generation.drafting.draft import Draft, Drafter, Request, padded, until_stop
from zigzag.generation.drafting.lookup import LookupDrafter
from zigzag.generation.drafting.model import ModelDrafter, streaming_drafter
from zigzag.generation.noise import row_seeds
from zigzag.generation.rules import PhaseRule, Rule, as_rule
from zigzag.generation.statistics import Statistics
from zigzag.generation.uniform_blocks import ROUNDS, UniformBlocks
from zigzag.plans.heads import Plan
from zigzag.reference.errors import ArgumentError, CacheError, ModelError
from zigzag.reference.trees import chain, check_tree, node_depths
from zigzag.reference.verification import Verdict
from zigzag.running.fixed_runner import open_runner
from zigzag.running.runner import Host, Runner


@dataclass
class Generation:
    """What `generate` returns.

    sequences: prompt and new tokens of each row, without padding; new_tokens: the new ones alone
    finish_reasons: "eos", "length" or "stopped" of each row; "cancelled" if the caller stopped it
    cache: of a single row, for `generate(..., cache=)`; None for batches
    """

    sequences: list[list[int]]
    new_tokens: list[list[int]]
    finish_reasons: list[str]
    statistics: Statistics
    cache: Runner | None = None


def generate(
    model: Any,
    input_ids: Any,
    *,
    attention_mask: Any = None,
    plan: Plan | None = None,
    drafter: Any = None,
    rule: str | Rule | PhaseRule = "residual",
    num_draft_tokens: int = 4,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int | Sequence[int] = 0,
    eos_token_id: int | Sequence[int] | None = None,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    on_tokens: Callable[[int, list[int]], bool | None] | None = None,
    spare: int = 64,
    cache: Runner | None = None,
    cuda_graphs: bool | None = None,
) -> Generation:
    """Continue each row: draft cheaply, verify all drafts in one forward, emit, repeat.

    Lossless unless the rule says otherwise: at temperature 0 the tokens are those of plain greedy decoding, else they
    follow the model's own law (arXiv 2211.17192; docs/acceptance.md has the proofs).

    model: a transformers decoder with grouped-query attention. It is left as it was found.
    input_ids: [B, T] tensor, or B lists of tokens of any lengths
    attention_mask: [B, T], 0 for padding on either side
    plan: LayerPlan or HeadPlan to run under; default: the attached one, else full attention
    drafter: "lookup" (n-grams of the text itself), "streaming" (the model with all layers streaming), a draft model,
        any `zigzag.generation.drafting.Drafter`, or None for plain decoding
    rule: an acceptance rule by name ("residual", "block", "exact", "greedy", ...), a Rule or a PhaseRule
    num_draft_tokens: of a drafter given by name or as a model
    max_new_tokens: of each row
    temperature, top_k, top_p, min_p: of target and draft alike, as `zigzag.ops.to_probs`; temperature 0 is greedy
    seed: one for each row, or seed, seed + 1, ...: a row's tokens do not depend on the rows beside it
    eos_token_id: tokens that end a row; default: the model's
    logits_processor, stopping_criteria: transformers' lists; each sees one row at a time, without padding
    on_tokens: called with (row, new tokens) after each round; a true result cancels
    spare: most tokens that streaming layers can take back, at least the longest draft
    cache: `result.cache` of an earlier call with one row; the common prefix is not computed again
    cuda_graphs: steps as CUDA graphs over a cache at fixed addresses; None: where that can be (one GPU, layer plans,
        drafts that are chains); True: or an error; False: never

    Raises ArgumentError, CacheError or ModelError where the result would not be right.
    """
    rows = _rows(input_ids, attention_mask)
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ArgumentError(f"generate: max_new_tokens must be a whole number of at least 1, got {max_new_tokens!r}")
    loop = _Loop(
        model,
        rows,
        plan=plan,
        rule=as_rule(rule),
        most=max_new_tokens,
        spare=spare,
        cache=cache,
        drafter=_drafter(drafter, model, num_draft_tokens),
        seeds=row_seeds(seed, len(rows)),
        distribution=Distribution(temperature, top_k, top_p, min_p, logits_processor),
        eos=_eos(model, eos_token_id),
        criteria=stopping_criteria,
        on_tokens=on_tokens,
        cuda_graphs=cuda_graphs,
    )
    with torch.inference_mode():
        return loop.run()


class _Loop:
    """The state of one call of `generate`. `alive` names the rows that still run, in the order of the caches."""

    def __init__(
        self,
        model: Any,
        rows: list[list[int]],
        *,
        plan: Plan | None,
        rule: Rule | PhaseRule,
        most: int,
        spare: int,
        cache: Runner | None,
        drafter: Drafter | None,
        seeds: list[int],
        distribution: Distribution,
        eos: frozenset[int],
        criteria: Any,
        on_tokens: Any,
        cuda_graphs: bool | None,
    ) -> None:
        self.model, self.rule, self.drafter, self.distribution = model, rule, drafter, distribution
        self.seeds, self.eos, self.criteria, self.on_tokens = seeds, eos, criteria, on_tokens
        self.vocabulary = model.config.get_text_config(decoder=True).vocab_size
        for b, row in enumerate(rows):
            if min(row) < 0 or max(row) >= self.vocabulary:
                raise ArgumentError(f"generate: the tokens of row {b} must be in [0, {self.vocabulary})")
        attached = getattr(model, "_zigzag_attachment", None)
        self.plan = plan if plan is not None or attached is None else attached.plan
        self._check_drafter(spare)
        if cache is not None and (len(rows) != 1 or cache.host.model is not model or cache.plan != self.plan):
            raise CacheError("generate: cache= must come from an earlier call with one row, this model and this plan")
        self.wants_hidden = getattr(drafter, "wants_hidden", False)
        if self.wants_hidden and cache is not None:
            raise CacheError(
                "generate: a drafter that reads the target's states needs them from the start: leave out cache="
            )
        self.spare, self.cache, self.cuda_graphs = spare, cache, cuda_graphs
        self.sequences = [list(row) for row in rows]
        self.starts = [len(row) for row in rows]
        self.ends = [len(row) + most for row in rows]
        self.alive = list(range(len(rows)))
        self.inside = [rule.enters(False, row) for row in rows]
        self.reasons = [""] * len(rows)
        self.statistics = Statistics()

    def _check_drafter(self, spare: int) -> None:
        drafter = self.drafter
        if drafter is None:
            self.rule.check("one-hot", False, self.distribution.temperature)
            return
        tree = getattr(drafter, "parents", None) is not None
        self.rule.check(drafter.law, tree, self.distribution.temperature)
        streams = self.plan is not None and self.plan.num_full < self.plan.num_layers
        if streams and drafter.longest > spare:
            raise ArgumentError(
                f"generate: the drafter submits up to {drafter.longest} tokens, but streaming layers take back at most "
                f"spare = {spare}; give spare={drafter.longest} or more"
            )
        other = getattr(drafter, "model", None)
        size = self.vocabulary if other is None else other.config.get_text_config(decoder=True).vocab_size
        if size != self.vocabulary:
            raise ModelError(
                f"generate: the draft model has a vocabulary of {size} tokens, the target one of {self.vocabulary}; "
                f"they must share their tokenizer"
            )

    def run(self) -> Generation:
        with Host(self.model, self.cuda_graphs) as host:
            self.target = self._open(host)
            if isinstance(self.drafter, ModelDrafter):
                if self.drafter.model is None or self.drafter.model is self.model:
                    self._decode(host)
                else:
                    with Host(self.drafter.model, self.cuda_graphs) as other:
                        self._decode(other)
            else:
                self._decode(host)
        new = [row[start:] for row, start in zip(self.sequences, self.starts, strict=True)]
        self.statistics.new_tokens = sum(map(len, new))
        cache = self.target if len(self.sequences) == 1 else None
        return Generation(self.sequences, new, self.reasons, self.statistics, cache)

    def _open(self, host: Host) -> Runner:
        if self.cache is None:
            return open_runner(
                host,
                self.plan,
                spare=self.spare,
                keep_hidden=self.wants_hidden,
                capacity=max(self.ends) + self.spare,
                trees=getattr(self.drafter, "parents", None) is not None,
            )
        self.cache.host = host
        return self.cache

    def _decode(self, drafting_host: Host) -> None:
        if isinstance(self.drafter, ModelDrafter):
            self.drafter.open(drafting_host)
        begin = time.perf_counter()
        self.target.fill([row[:-1] for row in self.sequences])
        self.statistics.seconds_prefill = time.perf_counter() - begin
        longest = 0 if self.drafter is None else self.drafter.longest
        rounds = min(ROUNDS, self.ends[0] - self.starts[0])  # each gives every row a token
        self.uniforms = UniformBlocks("verify", self.target.device, slots=longest + 1, rounds=rounds)
        round_ = 0
        while self.alive:
            self._round(round_)
            round_ += 1

    def _round(self, round_: int) -> None:
        clock = [time.perf_counter()]
        draft = self._draft(round_)
        clock.append(time.perf_counter())
        drafts = [ids[:n].tolist() for ids, n in zip(draft.token_ids, draft.counts, strict=True)]
        parents = chain(draft.token_ids.shape[1]) if draft.parents is None else list(draft.parents)
        roots = np.array([[self.sequences[b][-1]] for b in self.alive])
        fed = torch.from_numpy(np.concatenate([roots, np.maximum(draft.token_ids, 0)], axis=1)).to(self.target.device)
        logits = self.target.feed(fed, parents=None if draft.parents is None else [-1, *(p + 1 for p in parents)])
        clock.append(time.perf_counter())
        emitted, paths = self._verdict(draft, drafts, parents, fed[:, 1:], logits, round_)
        self._commit(emitted, paths, fed.shape[1], draft, parents)
        clock.append(time.perf_counter())
        self.statistics.seconds_draft += clock[1] - clock[0]
        self.statistics.seconds_verify += clock[2] - clock[1]
        self.statistics.seconds_rest += clock[3] - clock[2]
        self.statistics.forwards += 1

    def _draft(self, round_: int) -> Draft:
        rows = [self.sequences[b] for b in self.alive]
        none = Draft(*padded([[] for _ in rows]))
        if self.drafter is None:
            return none
        most = [self.ends[b] - len(self.sequences[b]) - 1 for b in self.alive]
        if max(most) == 0:
            return none
        seeds = [self.seeds[b] for b in self.alive]
        hidden = self.target.take_hidden() if self.wants_hidden else None
        request = Request(rows, most, seeds, round_, self.distribution.next_token, hidden)
        draft = self._checked(self.drafter.draft(request), most)
        self.statistics.draft_steps += int(draft.counts.max(initial=0))
        return draft if draft.parents is not None else until_stop(draft, self.eos)

    def _checked(self, draft: Draft, most: list[int]) -> Draft:
        """The draft, if it can be what the drafter says it is."""
        assert self.drafter is not None
        ids, counts, name = draft.token_ids, draft.counts, type(self.drafter).__name__
        rows, width = len(self.alive), ids.shape[1]
        if ids.shape != (rows, width) or counts.shape != (rows,) or ((counts < 0) | (counts > width)).any():
            raise ArgumentError(f"{name} must give token_ids [{rows}, K] and counts [{rows}] in [0, K]")
        if draft.parents is not None:
            check_tree(name, draft.parents, width)
        if width > self.drafter.longest:
            raise ArgumentError(
                f"{name} drafted {width} tokens, but says that it drafts at most {self.drafter.longest}"
            )
        read = np.arange(width) < counts[:, None]
        outside = ids[read & ((ids < 0) | (ids >= self.vocabulary))]
        if len(outside):
            raise ArgumentError(f"{name} drafted token {outside[0]}, outside the vocabulary [0, {self.vocabulary})")
        if self.drafter.law != "dense" or not width:
            return draft
        if draft.probs is None or tuple(draft.probs.shape) != (rows, width, self.vocabulary):
            shape = None if draft.probs is None else list(draft.probs.shape)
            raise ArgumentError(
                f"{name} says that its law is dense, so probs [{rows}, {width}, {self.vocabulary}] are "
                f"needed, got {shape}"
            )
        return draft

    def _verdict(
        self, draft: Draft, drafts: list[list[int]], parents: list[int], ids: Tensor, logits: Tensor, round_: int
    ) -> tuple[list[list[int]], list[list[int]]]:
        """(emitted tokens, accepted nodes) of each row."""
        rows = [self.sequences[b] for b in self.alive]
        logits = self.distribution.processed(logits, rows, drafts, parents)
        counts = torch.from_numpy(draft.counts).to(ids.device)
        rules = self.rule.by_row([self.inside[b] for b in self.alive])
        if self.distribution.temperature == 0 and all(rule.lossless for rule in rules):
            coins = torch.empty(len(rows), ids.shape[1] + 1, device=ids.device)  # nobody looks at them
        else:
            coins = self.uniforms([self.seeds[b] for b in self.alive], round_, ids.shape[1] + 1)
        emitted: list[list[int]] = [[] for _ in rows]
        paths: list[list[int]] = [[] for _ in rows]
        for rule in {id(r): r for r in rules}.values():
            mine = [i for i, r in enumerate(rules) if r is rule]
            some = slice(None) if len(mine) == len(rows) else torch.tensor(mine, device=ids.device)
            verdict = rule.verify(
                ids[some],
                None if draft.probs is None else draft.probs[some],
                logits[some],
                self.distribution,
                coins[some],
                counts[some],
                draft.parents,
                draft.replacement,
            )
            drawn = draft.probs is not None and (draft.parents is None or draft.replacement)
            q = draft.probs[some] if drawn else None  # without replacement a sibling may come from outside q
            for i, answer in zip(mine, self._fetched(verdict, q, ids[some], counts[some]), strict=True):
                taken = answer.pop()
                emitted[i] = answer[: taken + 1]
                nodes = answer[-verdict.accepted_nodes.shape[1] :] if draft.parents is not None else range(taken)
                paths[i] = list(nodes[:taken])
        return emitted, paths

    def _fetched(self, verdict: Verdict, draft_probs: Tensor | None, ids: Tensor, counts: Tensor) -> list[list[int]]:
        """Each row's tokens, then its accepted nodes (of a tree), then how many: one transfer from the device."""
        parts = [verdict.output_token_ids]
        if verdict.accepted_nodes is not None:
            parts.append(verdict.accepted_nodes)
        parts.append(verdict.num_accepted[:, None])
        if draft_probs is not None:
            own = draft_probs.gather(-1, ids[..., None])[..., 0]
            read = torch.arange(ids.shape[1], device=ids.device) < counts[:, None]
            parts.append((read & ~(own > 0)).any(dim=1, keepdim=True).long())
        rows = torch.cat(parts, dim=1).tolist()
        if draft_probs is not None and any([row.pop() for row in rows]):
            raise ArgumentError(
                f"{type(self.drafter).__name__} drafted a token to which its probs give probability 0 or NaN: they "
                f"must be the distribution that the token was drawn from"
            )
        return rows

    def _commit(
        self, emitted: list[list[int]], paths: list[list[int]], fed: int, draft: Draft, parents: list[int]
    ) -> None:
        """Cut what goes too far, keep the accepted path in the cache, drop rows that are done."""
        depths = np.concatenate([[0], node_depths(parents)])
        step: dict[int, list[int]] = {}
        kept = []
        for i, b in enumerate(self.alive):
            if emitted[i][-1] < 0:
                raise ModelError(f"generate: the model gave logits for row {b} that are NaN or all -inf")
            self.statistics.count(int(depths[: draft.counts[i] + 1].max()), len(paths[i]))
            step[b] = tokens = emitted[i][: self._cut(b, emitted[i])]
            kept.append([0, *(node + 1 for node in paths[i][: len(tokens) - 1])])
            self.target.tokens[i] += [self.sequences[b][-1], *tokens[:-1]]
            self.inside[b] = self.rule.enters(self.inside[b], tokens)
            self.sequences[b] += tokens
        self.target.keep(kept, fed)
        if self.drafter is not None:
            self.drafter.observe(draft.counts.tolist(), [len(path) for path in paths])
        going = [i for i, b in enumerate(self.alive) if not self.reasons[b]]
        if going and len(going) < len(self.alive):
            self.target.select(going)
            if self.drafter is not None:
                self.drafter.select(going)
        self.alive = [self.alive[i] for i in going]
        if self.on_tokens is not None and any([self.on_tokens(b, tokens) for b, tokens in step.items()]):
            for b in self.alive:
                self.reasons[b] = "cancelled"
            self.alive = []

    def _cut(self, b: int, tokens: list[int]) -> int:
        """How many of the emitted tokens row `b` takes; sets the row's reason if it ends there."""
        tokens = tokens[: self.rule.cut(self.inside[b], tokens)]
        room = self.ends[b] - len(self.sequences[b])
        for n, token in enumerate(tokens, start=1):
            if token in self.eos:
                self.reasons[b] = "eos"
            elif self.criteria and self._stopped([*self.sequences[b], *tokens[:n]]):
                self.reasons[b] = "stopped"
            elif n == room:
                self.reasons[b] = "length"
            if self.reasons[b]:
                return n
        return len(tokens)

    def _stopped(self, tokens: list[int]) -> bool:
        ids = torch.tensor([tokens], device=self.target.device)
        return bool(torch.as_tensor(self.criteria(ids, None)).any())


def _rows(input_ids: Any, attention_mask: Any) -> list[list[int]]:
    """The tokens of each row without padding."""
    if isinstance(input_ids, Tensor):
        if input_ids.dim() != 2 or input_ids.is_floating_point():
            raise ArgumentError(
                f"generate: input_ids must be integers [B, T], got {input_ids.dtype} {list(input_ids.shape)}"
            )
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ArgumentError(
                f"generate: attention_mask must be {list(input_ids.shape)} as input_ids, got "
                f"{list(attention_mask.shape)}"
            )
        ids = input_ids.tolist()
        mask = [[1] * len(row) for row in ids] if attention_mask is None else attention_mask.tolist()
        rows = [[t for t, m in zip(row, seen, strict=True) if m] for row, seen in zip(ids, mask, strict=True)]
    else:
        if attention_mask is not None:
            raise ArgumentError("generate: attention_mask goes with input_ids as a tensor, not with lists")
        try:
            rows = [array("q", row).tolist() for row in input_ids]  # long prompts: faster than int() of each
        except (TypeError, OverflowError) as error:
            raise ArgumentError(f"generate: input_ids must be rows of whole numbers: {error}") from error
    if not rows or not all(rows):
        raise ArgumentError("generate: every row must have at least one token")
    return rows


def _drafter(drafter: Any, model: Any, num_draft_tokens: int) -> Drafter | None:
    if drafter == "lookup":
        return LookupDrafter(num_draft_tokens)
    if drafter == "streaming":
        return streaming_drafter(model.config.get_text_config(decoder=True).num_hidden_layers, stop=num_draft_tokens)
    if isinstance(drafter, str):
        raise ArgumentError(f"generate: drafter must be 'lookup', 'streaming', a model or a Drafter, got {drafter!r}")
    if isinstance(drafter, torch.nn.Module):
        return ModelDrafter(drafter, stop=num_draft_tokens)
    return drafter


def _eos(model: Any, eos_token_id: int | Sequence[int] | None) -> frozenset[int]:
    if eos_token_id is None:
        eos_token_id = getattr(model.generation_config, "eos_token_id", None)
    if eos_token_id is None:
        return frozenset()
    return frozenset([eos_token_id] if isinstance(eos_token_id, int) else eos_token_id)
