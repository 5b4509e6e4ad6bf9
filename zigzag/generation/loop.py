"""`zigzag.generate`: draft, verify, commit, until every row is done. docs/generation.md says why it is right."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from zigzag.generation.ahead import Ahead
from zigzag.generation.conditions import check_cache, check_drafter, check_rope, drafts_trees
from zigzag.generation.configured import Place, configured
from zigzag.generation.criteria import Criteria
from zigzag.generation.distribution import Distribution
from zigzag.generation.drafting.draft import Draft, Drafter, Request, padded, until_stop
from zigzag.generation.drafting.named import as_drafter
from zigzag.generation.drafting.vocabulary import vocabulary_size
from zigzag.generation.inputs import check_options, token_rows, whole
from zigzag.generation.logprobs import LogProbs
from zigzag.generation.noise import row_seeds
from zigzag.generation.processors import Processors, listed
from zigzag.generation.result import Generation
from zigzag.generation.row import Row, check_tokens
from zigzag.generation.rules import PhaseRule, Rule, as_rule
from zigzag.generation.settings import settings
from zigzag.generation.statistics import Statistics
from zigzag.generation.streamer import Stream
from zigzag.generation.uniform_blocks import ROUNDS, UniformBlocks
from zigzag.generation.verdict import Judged, Pending, judge
from zigzag.models.decoder import Decoder
from zigzag.plans.heads import Plan
from zigzag.reference.errors import ModelError
from zigzag.reference.trees import node_depths
from zigzag.running.attach import cache_bytes
from zigzag.running.host import Host, execution_device
from zigzag.running.interception import attachment_of
from zigzag.running.memory import check_fits, told_what_helps
from zigzag.running.opening import open_runner
from zigzag.running.runner import Runner
from zigzag.running.transfers import ToHost, to_device


def generate(
    model: Decoder,
    input_ids: Any,
    *,
    attention_mask: Any = None,
    plan: Plan | None = None,
    drafter: Any = None,
    rule: str | Rule | PhaseRule = "residual",
    num_draft_tokens: int = 4,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int | Sequence[int] = 0,
    num_return_sequences: int | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    stop: str | Sequence[str] | None = None,
    tokenizer: Any = None,
    generation_config: Any = None,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    logprobs: bool = False,
    on_tokens: Callable[[int, list[int]], bool | None] | None = None,
    on_prefill: Callable[[int, int], object] | None = None,
    streamer: Any = None,
    spare: int = 64,
    cache: Runner | None = None,
    cuda_graphs: bool | None = None,
    prefill_chunk_size: int | None = None,
) -> Generation:
    """Continue each row: draft cheaply, verify all drafts in one forward, emit, repeat.

    Lossless unless the rule says otherwise: at temperature 0 the tokens are those of plain greedy decoding, else they
    follow the model's own law (arXiv 2211.17192; docs/acceptance.md has the proofs).

    model: a transformers decoder with grouped-query attention. It is left as it was found.
    input_ids: integers [B, T], B lists of tokens of any lengths, or what a tokenizer gives
    attention_mask: as input_ids, 0 for padding on either side
    plan: LayerPlan or HeadPlan to run under; default: the attached one, else full attention
    drafter: "lookup" (n-grams of the text itself), "jacobi" or "lookahead" (the model's own guesses), "streaming" (the
        model with all layers streaming), a draft model, any `zigzag.generation.drafting.Drafter`, or None for none
    rule: an acceptance rule by name ("residual", "block", "exact", "greedy", ...), a Rule or a PhaseRule
    num_draft_tokens: of a drafter given by name or as a model
    max_new_tokens: of each row; where generation_config says nothing 128
    temperature, top_k, top_p, min_p: of target and draft alike, as `zigzag.ops.to_probs`; temperature 0 is greedy.
        Where generation_config says nothing 1, 0, 1, 0
    seed: one for each row, or seed, seed + 1, ...: a row's tokens do not depend on the rows beside it
    num_return_sequences: times that each row is continued; the rows that come of one stand together
    eos_token_id: tokens that end a row; default: the model's; []: none
    stop, tokenizer: strings that end a row, and the model's tokenizer; default: generation_config's; []: none
    generation_config: transformers' GenerationConfig: what it sets counts where no argument was given; default: the
        model's; `GenerationConfig()` asks for nothing
    logits_processor, stopping_criteria: transformers' lists, plain ones or callables; each sees one row at a time,
        without padding, and its index if it takes `row`
    logprobs: whether the log-probabilities of the new tokens are wanted
    on_tokens: called with (row, new tokens) after each round; a true result cancels
    on_prefill: called after each piece of the prompts with (tokens computed, tokens to compute) of all rows
    streamer: transformers', for one row
    spare: most tokens that streaming layers can take back, at least the longest draft
    cache: `result.cache` of an earlier call with one row; the common prefix is not computed again
    cuda_graphs: steps as CUDA graphs over a cache at fixed addresses; None: where that can be (one GPU, layer plans,
        drafts that are chains); True: or an error; False: never
    prefill_chunk_size: most prompt tokens computed at once, all rows together; None: what generation_config says, else
        as many as keep the memory for it, beside weights and cache, under a bound (docs/prompts.md)

    Raises ArgumentError, CacheError or ModelError where the result would not be right. docs/generation.md says more.
    """
    with Stream(streamer) as stream:
        check_options(tokenizer, logprobs, on_tokens, on_prefill, cuda_graphs)
        attached, vocabulary, chosen = attachment_of(model), vocabulary_size(model), as_rule(rule)
        asked = settings(
            model,
            vocabulary,
            generation_config,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            eos_token_id=eos_token_id,
            stop=stop,
            num_return_sequences=num_return_sequences,
            prefill_chunk_size=prefill_chunk_size,
        )
        texts = [[*row] for row in token_rows(input_ids, attention_mask) for _ in range(asked.num_return_sequences)]
        ends = [asked.end(b, len(text)) for b, text in enumerate(texts)]
        seeds = row_seeds(seed, len(texts))
        rows = [Row(b, text, len(text), ends[b], seeds[b], chosen.enters(False, text)) for b, text in enumerate(texts)]
        check_tokens(rows, vocabulary)
        drafts = as_drafter(drafter, model, whole("num_draft_tokens", num_draft_tokens, 1))
        device = execution_device(model)
        places = [Place.of(row.tokens, row.end, asked.eos, device) for row in rows]
        processors = Processors(
            listed("logits_processor", logits_processor),
            configured(asked.config, places, vocabulary),
            drafts=drafts is not None,
        )
        distribution = Distribution(asked.temperature, asked.top_k, asked.top_p, asked.min_p, processors)
        loop = _Loop(
            model,
            rows,
            plan=plan if plan is not None or attached is None else attached.plan,
            rule=chosen,
            drafter=drafts,
            distribution=distribution,
            vocabulary=vocabulary,
            tokenizer=tokenizer,
            eos=asked.eos,
            criteria=Criteria(stopping_criteria, asked.stop, tokenizer, asked.config.max_time, device),
            logprobs=LogProbs(distribution, len(rows)) if logprobs else None,
            on_tokens=on_tokens,
            on_prefill=on_prefill,
            stream=stream,
            spare=whole("spare", spare, 0),
            cache=cache,
            cuda_graphs=cuda_graphs,
            prefill_chunk_size=asked.prefill_chunk_size,
        )
        with torch.inference_mode():
            return loop.run()


@dataclass
class _Loop:
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
            self.cache.host = host
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
            trees=self.drafts_trees,
        )

    def _decode(self) -> None:
        self._prefill()
        longest = 0 if self.drafter is None else self.drafter.longest
        rounds = min(ROUNDS, self.rows[0].room)  # each gives every row a token
        self.uniforms = UniformBlocks("verify", self.target.device, slots=longest + 1, rounds=rounds)
        reads_logits = self.criteria.read_scores or self.logprobs is not None  # behind a round
        alone = self.drafter is None and not self.distribution.processors and not reads_logits
        self.ahead = Ahead(self.target, wanted=alone)
        round_ = 0
        while self.alive:
            self._round(round_)
            round_ += 1
        self.ahead.drop()

    def _prefill(self) -> None:
        begin = time.perf_counter()
        self.target.reserve(self._longest)
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
        if min(row.room for row in self.alive) > 1:
            self.ahead.begin(pending.first)
        clock.append(time.perf_counter())
        judged = pending.fetched()
        if predicted is not None:
            for row, tokens in zip(self.alive, predicted.fetched(), strict=True):
                row.predictions = tokens
        self._commit(draft, judged, logits)
        clock.append(time.perf_counter())
        self.statistics.spent(*np.diff(clock).tolist())

    def _fed(self, draft: Draft) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(what `_on_device` gives, logits [B, K + 1, V]): of the forward that is under way, or of one more."""
        logits = self.ahead.take()
        if logits is not None:
            none = torch.zeros(len(logits), 1, dtype=torch.int64, device=logits.device)
            return none, none[:, 0], logits
        fed, counts = self._on_device(draft)
        below_root = None if draft.parents is None else [-1, *(parent + 1 for parent in draft.parents)]
        return fed, counts, self.target.feed(fed, parents=below_root).logits

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
        draft = self.drafter.draft(Request(texts, most, seeds, round_, to_probs, hidden, predictions))
        draft.check(self.drafter, len(texts), self.vocabulary)
        self.statistics.draft_steps += int(draft.counts.max(initial=0))
        return draft if draft.parents is not None else until_stop(draft, self.eos)

    def _judged(
        self, draft: Draft, ids: torch.Tensor, counts: torch.Tensor, logits: torch.Tensor, round_: int
    ) -> Pending:
        rules = self.rule.by_row([row.inside for row in self.alive])
        if self.distribution.temperature == 0 and all(rule.lossless for rule in rules):
            coins = torch.empty(len(rules), ids.shape[1] + 1, device=ids.device)  # nobody looks at them
        else:
            coins = self.uniforms([row.seed for row in self.alive], round_, ids.shape[1] + 1)
        return judge(rules, draft, ids, counts, logits, coins, self.distribution, type(self.drafter).__name__)

    def _commit(self, draft: Draft, judged: Judged, logits: torch.Tensor) -> None:
        """Cut what goes too far, keep the accepted path in the cache, drop rows that are done."""
        for row, tokens in zip(self.alive, judged.emitted, strict=True):
            if tokens[-1] < 0:
                raise ModelError(f"generate: the model gave logits for row {row.index} that are NaN or all -inf")
        depths = np.concatenate([[0], node_depths(draft.tree)])
        step: list[list[int]] = []
        nodes, held = [], []
        for b, row in enumerate(self.alive):
            path = [0, *(node + 1 for node in judged.paths[b])]
            self.statistics.count(int(depths[: draft.counts[b] + 1].max()), len(path) - 1)
            if self.criteria.read_scores:
                scores = self.distribution.log_probs(logits[b, path])
                self.criteria.remember(row.index, scores, row.new)
            tokens = judged.emitted[b][: self._cut(row, judged.emitted[b])]
            nodes.append(path[: len(tokens)])
            held.append([row.tokens[-1], *tokens[:-1]])
            row.inside = self.rule.enters(row.inside, tokens)
            row.tokens += tokens
            step.append(tokens)
        if any(row.reason for row in self.alive):
            self.ahead.take()  # in vain
        self.target.keep(nodes, held, ahead=self.ahead.fed)
        if self.logprobs is not None:
            self.logprobs.add([row.index for row in self.alive], nodes, step, logits)
        if self.drafter is not None:
            self.drafter.observe(draft.counts.tolist(), [len(path) for path in judged.paths])
        told = [(row.index, tokens) for row, tokens in zip(self.alive, step, strict=True)]
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
