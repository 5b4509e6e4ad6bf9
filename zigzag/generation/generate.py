"""`zigzag.generate`: what is asked, checked and put together before the loop begins."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from zigzag.defaults import RULE, SEED, SPARE
from zigzag.generation.alike import agree
from zigzag.generation.callables import listed
from zigzag.generation.configured import Place, configured
from zigzag.generation.criteria import Criteria
from zigzag.generation.distribution import Distribution
from zigzag.generation.drafting.named import as_drafter
from zigzag.generation.drafting.vocabulary import vocabulary_size
from zigzag.generation.inputs import check_options, token_rows, whole
from zigzag.generation.logprobs import LogProbs
from zigzag.generation.loop import Loop
from zigzag.generation.noise import row_seeds
from zigzag.generation.processors import Processors
from zigzag.generation.recipes import cooked
from zigzag.generation.result import Generation
from zigzag.generation.row import Row, check_tokens
from zigzag.generation.rules import PhaseRule, Rule, as_rule
from zigzag.generation.settings import settings
from zigzag.generation.streamer import Stream
from zigzag.models.decoder import Decoder
from zigzag.plans.heads import Plan
from zigzag.plans.opened import opened
from zigzag.running.host import execution_device
from zigzag.running.interception import attachment_of
from zigzag.running.processes import processes_of
from zigzag.running.runner import Runner


def generate(
    model: Decoder,
    input_ids: Any,
    *,
    attention_mask: Any = None,
    plan: Plan | str | Path | None = None,
    drafter: Any = None,
    rule: str | Rule | PhaseRule | None = None,
    recipe: str | None = None,
    num_draft_tokens: int | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int | Sequence[int] = SEED,
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
    spare: int = SPARE,
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
    plan: LayerPlan or HeadPlan to run under, or the file of one; default: the attached one, else full attention
    drafter: "lookup" (n-grams of the text itself), "suffix" (by how often they came), "jacobi" or "lookahead" (the
        model's own guesses), "streaming" (the model with all layers streaming), a trained head ("medusa", "eagle"),
        "adaptive" (what pays), a draft model, any `zigzag.generation.drafting.Drafter`, or None for none
    rule: an acceptance rule by name ("residual", "block", "exact", "greedy", ...), a Rule or a PhaseRule; default:
        "residual"
    recipe: in the place of drafter and rule a system of the survey by name, as `zigzag recipes` lists them, with what
        it needs looked for: trained heads and draft models by `zigzag.load_head`
    num_draft_tokens: of a drafter given by name or as a model; default: 4. One that is made already, and a recipe's,
        says itself how far it drafts: another number is refused
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

    Raises ArgumentError, CacheError or ModelError where the result would not be right, ProcessError where processes
    that run the model together were not given the same, or one of them failed. docs/generation.md says more.
    """
    processes = processes_of(model)
    together = nullcontext() if processes is None else processes.call()
    with Stream(streamer) as stream, together:
        check_options(tokenizer, logprobs, on_tokens, on_prefill, cuda_graphs)
        if recipe is not None:
            drafter, rule, logits_processor = cooked(recipe, model, drafter, rule, logits_processor)
        given, attached, vocabulary = opened(plan), attachment_of(model), vocabulary_size(model)
        chosen = as_rule(RULE if rule is None else rule)
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
        most = None if num_draft_tokens is None else whole("num_draft_tokens", num_draft_tokens, 1)
        drafts = as_drafter(drafter, model, most)
        device = execution_device(model)
        places = [Place.of(row.tokens, row.end, asked.eos, device) for row in rows]
        processors = Processors(
            listed("logits_processor", logits_processor),
            configured(asked.config, places, vocabulary),
            drafts=drafts is not None,
        )
        distribution = Distribution(asked.temperature, asked.top_k, asked.top_p, asked.min_p, processors)
        loop = Loop(
            model,
            rows,
            plan=given if given is not None or attached is None else attached.plan,
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
            processes=processes,
        )
        if processes is not None:
            agree(processes, loop, asked)
        with torch.inference_mode():
            return loop.run()
