"""Draft, verify, commit, until every row is done. docs/generation.md says why it is right."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from zigzag.generation.ahead import Ahead
from zigzag.generation.conditions import check_cache, check_drafter, check_rope, drafts_trees
from zigzag.generation.criteria import Criteria
from zigzag.generation.distribution import Distribution
from zigzag.generation.drafting.draft import Draft, Drafter, Request, padded, until_stop, widened
from zigzag.generation.drafting.grown import GrownTree
from zigzag.generation.logprobs import LogProbs
from zigzag.generation.onward import Onward, onward_of
from zigzag.generation.result import Generation
from zigzag.generation.row import Row
from zigzag.generation.rules import PhaseRule, Rule
from zigzag.generation.statistics import Statistics
from zigzag.generation.streamer import Stream
from zigzag.generation.uniform_blocks import ROUNDS, UniformBlocks
from zigzag.generation.verdict import Judged, Pending, judge
from zigzag.models.decoder import Decoder
from zigzag.plans.heads import Plan
from zigzag.reference.errors import ModelError
from zigzag.reference.trees import below_root, node_depths
from zigzag.running.attach import cache_bytes
from zigzag.running.fixed import FixedStore
from zigzag.running.host import Host
from zigzag.running.memory import check_fits, told_what_helps
from zigzag.running.onward import fed
from zigzag.running.opening import open_runner
from zigzag.running.processes import Processes
from zigzag.running.runner import Runner
from zigzag.running.transfers import ToHost, to_device


@dataclass
class Loop:
    """One call of `generate`. `alive` are the rows that still run, in the order of the caches."""

    model: Decoder
    rows: list[Row]
    plan: Plan | None
    rule: Rule | PhaseRule
    drafter: Drafter | None
    distribution: Distribution
    vocabulary: int
    tokenizer: Any
    eos: frozenset[int]
    criteria: Criteria
    logprobs: LogProbs | None
    on_tokens: Callable[[int, list[int]], bool | None] | None
    on_prefill: Callable[[int, int], object] | None
    stream: Stream
    spare: int
    cache: Runner | None
    cuda_graphs: bool | None
    prefill_chunk_size: int | None
    processes: Processes | None = None
    statistics: Statistics = field(default_factory=Statistics)

    def __post_init__(self) -> None:
        self.alive = list(self.rows)
        self.wants_hidden = getattr(self.drafter, "wants_hidden", False)
        self.wants_predictions = getattr(self.drafter, "wants_predictions", False)
        self.drafts_trees = drafts_trees(self.drafter)
        law = "one-hot" if self.drafter is None else self.drafter.law
        self.rule.check(law, self.drafts_trees, self.distribution.temperature)
        if self.cache is not None:
            check_cache(self.cache, self.rows, self.model, self.plan, self.drafter, self.cuda_graphs)
        if self.drafter is not None:
            spare = self.spare if self.cache is None else self.cache.store.spare
            check_drafter(self.drafter, self.model, self.plan, spare, self.vocabulary, self.tokenizer)
        check_rope(self.model, self.rows, self.cache, self.drafter, self.prefill_chunk_size)

    def run(self) -> Generation:
        with ExitStack() as hosts:
            host = hosts.enter_context(Host(self.model, self.cuda_graphs, self.prefill_chunk_size))
            self.target = self._open(host)
            of_models = {id(self.model): host}
            for place, stage in enumerate(getattr(self.drafter, "stages", ())):
                other = self.model if stage.model is None else stage.model
                if id(other) not in of_models:
                    own = Host(other, self.cuda_graphs, self.prefill_chunk_size)
                    of_models[id(other)] = hosts.enter_context(own)
                stage.open(of_models[id(other)], self.vocabulary, place)
            if self.processes is not None:
                self.processes.gathered("")  # nobody begins to sum before all have found that they can
            self.stream.begin([row.tokens for row in self.rows])  # nothing is refused after it
            with told_what_helps(), self.target.as_before_on_error():
                self._decode()
        new = [row.tokens[row.start :] for row in self.rows]
        self.statistics.new_tokens = sum(map(len, new))
        return Generation(
            [row.tokens for row in self.rows],
            new,
            [row.reason for row in self.rows],
            self.statistics,
            self.target if len(self.rows) == 1 else None,
            None if self.logprobs is None else self.logprobs.fetched(),
        )

    @property
    def _longest(self) -> int:
        """Most tokens of a row, drafts included."""
        return max(row.end for row in self.rows) + self.spare

    def _open(self, host: Host) -> Runner:
        needed = partial(
            check_fits, host, self.plan, len(self.rows), self._longest, spare=self.spare, keep_hidden=self.wants_hidden
        )
        if self.cache is not None:
            self.cache.host, self.cache.keep_hidden = host, self.wants_hidden
            missing = self.cache.missing([row.tokens for row in self.rows])
            needed(prompt=missing, held=cache_bytes(self.cache.cache))
            return self.cache
        needed(prompt=max(row.start for row in self.rows))
        return open_runner(
            host,
            self.plan,
            spare=self.spare,
            keep_hidden=self.wants_hidden,
            capacity=self._longest,
        )

    def _decode(self) -> None:
        self._prefill()
        longest = 0 if self.drafter is None else self.drafter.longest
        rounds = min(ROUNDS, self.rows[0].room)  # each gives every row a token
        self.uniforms = UniformBlocks("verify", self.target.device, slots=longest + 1, rounds=rounds)
        reads_logits = self.criteria.read_scores or self.logprobs is not None  # behind a round
        self.ahead = Ahead(self.target, wanted=not self.distribution.processors and not reads_logits)
        grows = isinstance(getattr(self.drafter, "parents", None), GrownTree)  # each tree would be captured anew
        store = self.target.store
        self.verdicts = store.steps if isinstance(store, FixedStore) and store.graphs and not grows else None
        round_ = 0
        self.onwards: dict[Any, Onward | None] = {}  # by drafter and length
        while self.alive:
            onward = None if reads_logits or not round_ else self._onward()
            news = None if onward is None else self._news(onward)
            if onward is not None and news is not None:
                round_ = self._go_onward(onward, news, round_)
            else:
                self._round(round_)
                round_ += 1
            self._check_processes()
        self.ahead.drop()

    def _check_processes(self) -> None:
        """After a round: whether the others that run the model still do."""
        if self.processes is not None:
            self.processes.check()

    def _prefill(self) -> None:
        begin = time.perf_counter()
        nodes = self.drafter.longest + 1 if self.drafter is not None and self.drafts_trees else 0
        self.target.reserve(self._longest, nodes)
        self.target.fill([row.tokens[:-1] for row in self.rows], told=self.on_prefill)
        self.target.host.wait()
        self.statistics.seconds_prefill = time.perf_counter() - begin

    def _round(self, round_: int) -> None:
        clock = [time.perf_counter()]
        draft = self._draft(round_)
        clock.append(time.perf_counter())
        fed, counts, logits = self._fed(draft)
        clock.append(time.perf_counter())
        logits = self.distribution.processed(
            logits, [row.index for row in self.alive], [row.tokens for row in self.alive], draft.rows, draft.tree
        )
        predicted = ToHost(logits.argmax(dim=-1)) if self.wants_predictions else None
        pending = self._judged(draft, fed[:, 1:], counts, logits, round_)
        clock.append(time.perf_counter())
        if self.ahead.may and min(row.room for row in self.alive) > 1 and self._rests(draft):
            self.ahead.begin(pending.first)
        clock.append(time.perf_counter())
        judged = pending.fetched()
        if predicted is not None:
            for row, tokens in zip(self.alive, predicted.fetched(), strict=True):
                row.predictions = tokens
        self._commit(draft, judged, logits)
        clock.append(time.perf_counter())
        self.statistics.spent(*np.diff(clock).tolist())

    def _onward(self) -> Onward | None:
        """What goes on from here by itself: the drafter, or the one that it has just chosen."""
        going = getattr(self.drafter, "going", None)
        what = (self.drafter, None) if going is None else going(max(len(row.tokens) for row in self.alive))
        if what is None:
            return None
        if what not in self.onwards:
            of_call = self.rule, self.distribution, self.uniforms, self.eos
            self.onwards[what] = onward_of(self.target, what[0], what[1], *of_call)
        return self.onwards[what]

    def _news(self, onward: Onward) -> list[int] | None:
        """What each row's drafter does not know; None unless there is room for a round and the one behind it."""
        states = self.target.fresh if self.wants_hidden else [0] * len(self.alive)
        if min(row.room for row in self.alive) <= 2 * onward.depth + 1:
            return None
        news = onward.drafter.news([row.tokens for row in self.alive], states)
        return news if news is not None and max(news) <= onward.depth + 1 else None

    def _go_onward(self, onward: Onward, news: list[int], round_: int) -> int:
        """Rounds by themselves, each read while the next one is under way, until a row ends; the round behind them."""
        seeds = [row.seed for row in self.alive]
        hidden = self.target.take_hidden() if self.wants_hidden else None
        onward.begin([row.tokens for row in self.alive], news, hidden, self._longest)
        onward.launch(seeds, round_)
        chooses = getattr(self.drafter, "goes_on", None)
        while onward.under_way:
            begin = time.perf_counter()
            again = chooses is None or chooses(len(self.alive), max(len(row.tokens) for row in self.alive))
            room = min(row.room for row in self.alive) > 2 * onward.depth + 1
            if again and room and not any(row.reason for row in self.alive):
                onward.launch(seeds, round_ + 1)
            fed(self.target, onward.depth + 1, onward.in_advance)
            before = [len(row.tokens) for row in self.alive]
            draft, judged = onward.fetched(len(self.alive))
            self._commit(draft if draft.parents is not None else until_stop(draft, self.eos), judged, None)
            round_ += 1
            self.statistics.went_on(int(draft.counts.max()), time.perf_counter() - begin)
            self._check_processes()
            if all(row.reason for row in self.alive):
                self.alive = []
                return round_
        news = [max(1, len(row.tokens) - count) for row, count in zip(self.alive, before, strict=True)]
        onward.end([row.tokens[:count] for row, count in zip(self.alive, before, strict=True)], news)
        self._drop_done()
        return round_

    def _rests(self, draft: Draft) -> bool:
        """Whether the coming round is known to have no draft, before the token of this one, which has none, is read."""
        if self.drafter is None:
            return True
        rests = getattr(self.drafter, "rests", None)
        if rests is None or draft.token_ids.shape[1]:
            return False
        return bool(rests(1 + max(len(row.tokens) for row in self.alive)))

    def _fed(self, draft: Draft) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(what `_on_device` gives, logits [B, K + 1, V]): of the forward that is under way, or of one more."""
        logits = self.ahead.take()
        if logits is not None:
            none = torch.zeros(len(logits), 1, dtype=torch.int64, device=logits.device)
            return none, none[:, 0], logits
        fed, counts = self._on_device(draft)
        tree = None if draft.parents is None else below_root(draft.parents)
        return fed, counts, self.target.feed(fed, parents=tree).logits

    def _on_device(self, draft: Draft) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, K + 1] the rows' last tokens and their drafts, and [B] how many these are.

        In one transfer before the forward.
        """
        roots = np.array([[row.tokens[-1]] for row in self.alive])
        sent = np.concatenate([roots, np.maximum(draft.token_ids, 0), draft.counts[:, None]], axis=1)
        received = to_device(torch.from_numpy(sent), self.target.device)
        return received[:, :-1].contiguous(), received[:, -1].contiguous()

    def _draft(self, round_: int) -> Draft:
        most = [row.room - 1 for row in self.alive]
        if self.drafter is None or max(most) == 0:
            return Draft(*padded([[] for _ in self.alive]))
        texts, seeds = [row.tokens for row in self.alive], [row.seed for row in self.alive]
        hidden = self.target.take_hidden() if self.wants_hidden else None
        to_probs = partial(self.distribution.next_token, [row.index for row in self.alive])
        predictions = [row.predictions for row in self.alive] if self.wants_predictions and round_ else None
        static, greedy = self.distribution.static, self.distribution.temperature == 0
        draft = self.drafter.draft(Request(texts, most, seeds, round_, to_probs, hidden, predictions, static, greedy))
        draft.check(self.drafter, len(texts), self.vocabulary)
        self.statistics.draft_steps += int(draft.counts.max(initial=0))
        if draft.parents is not None:
            return draft
        draft = until_stop(draft, self.eos)
        may_widen = self.target.host.may_capture and draft.probs is None and not self.wants_predictions
        return widened(draft, self.drafter.longest) if may_widen else draft

    def _judged(
        self, draft: Draft, ids: torch.Tensor, counts: torch.Tensor, logits: torch.Tensor, round_: int
    ) -> Pending:
        rules = self.rule.by_row([row.inside for row in self.alive])
        if self.distribution.temperature == 0 and all(rule.lossless for rule in rules):
            coins = torch.empty(len(rules), ids.shape[1] + 1, device=ids.device)  # nobody looks at them
        else:
            coins = self.uniforms([row.seed for row in self.alive], round_, ids.shape[1] + 1)
        drafter = type(self.drafter).__name__
        return judge(rules, draft, ids, counts, logits, coins, self.distribution, drafter, self.verdicts)

    def _commit(self, draft: Draft, judged: Judged, logits: torch.Tensor | None) -> None:
        """Cut what goes too far, keep the accepted path in the cache, drop rows that are done.

        logits: None in rounds that go on by themselves, where rows that are done stay until these end
        """
        for row, tokens in zip(self.alive, judged.emitted, strict=True):
            if tokens[-1] < 0 and not row.reason:
                raise ModelError(f"generate: the model gave logits for row {row.index} that are NaN or all -inf")
        depths = np.concatenate([[0], node_depths(draft.tree)])
        step: list[list[int]] = []
        nodes: list[list[int]] = []
        held: list[list[int]] = []
        for b, row in enumerate(self.alive):
            if row.reason:  # it was done before this round, which was under way
                nodes.append([])
                held.append([])
                step.append([])
                continue
            path = [0, *(node + 1 for node in judged.paths[b])]
            self.statistics.count(int(depths[: draft.counts[b] + 1].max()), len(path) - 1)
            if self.criteria.read_scores and logits is not None:
                scores = self.distribution.log_probs(logits[b, path])
                self.criteria.remember(row.index, scores, row.new)
            tokens = judged.emitted[b][: self._cut(row, judged.emitted[b])]
            nodes.append(path[: len(tokens)] if logits is not None else list(range(len(tokens))))
            held.append([row.tokens[-1], *tokens[:-1]])
            row.inside = self.rule.enters(row.inside, tokens)
            row.tokens += tokens
            step.append(tokens)
        if any(row.reason for row in self.alive):
            self.ahead.take()  # in vain
        self.target.keep(nodes, held, ahead=self.ahead.fed)
        if self.logprobs is not None and logits is not None:
            self.logprobs.add([row.index for row in self.alive], nodes, step, logits)
        if self.drafter is not None:
            self.drafter.observe(draft.counts.tolist(), [len(path) for path in judged.paths])
        told = [(row.index, tokens) for row, tokens in zip(self.alive, step, strict=True) if tokens]
        if logits is not None:
            self._drop_done()
        if self.on_tokens is not None and any([self.on_tokens(*each) for each in told]):
            for row in self.alive:
                row.reason = "cancelled"
            self.alive = []
        for _, tokens in told:
            self.stream.put(tokens)

    def _drop_done(self) -> None:
        going = [i for i, row in enumerate(self.alive) if not row.reason]
        if going and len(going) < len(self.alive):
            self.target.select(going)
            if self.drafter is not None:
                self.drafter.select(going)
        self.alive = [self.alive[i] for i in going]

    def _cut(self, row: Row, tokens: list[int]) -> int:
        """How many of the emitted tokens the row takes; sets its reason if it ends there."""
        tokens = tokens[: self.rule.cut(row.inside, tokens)]
        for n, token in enumerate(tokens, start=1):
            if token in self.eos:
                row.reason = "eos"
            elif self.criteria and self.criteria.end(row.index, [*row.tokens, *tokens[:n]], row.new + n):
                row.reason = "stopped"
            elif n == row.room:
                row.reason = "length"
            if row.reason:
                return n
        return len(tokens)
