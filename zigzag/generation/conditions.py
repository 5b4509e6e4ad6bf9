"""What must hold between model, plan, drafter and cache, checked before `generate` begins its work."""

from typing import Any

from zigzag.generation.drafting.draft import Drafter
from zigzag.generation.drafting.vocabulary import check_vocabularies, vocabulary_size
from zigzag.generation.row import Row
from zigzag.models.decoder import Decoder
from zigzag.plans.heads import Plan
from zigzag.reference.errors import ArgumentError, CacheError, ModelError
from zigzag.running.fixed import FixedStore
from zigzag.running.model_layers import decoder_of, layers_of
from zigzag.running.rope import check_lengths, first_piece
from zigzag.running.runner import Runner
from zigzag.running.weights import weights_state


def drafts_trees(drafter: Drafter | None) -> bool:
    """Whether the drafter says that it drafts trees."""
    return getattr(drafter, "parents", None) is not None


def check_drafter(
    drafter: Drafter, model: Decoder, plan: Plan | None, spare: int, vocabulary: int, tokenizer: Any
) -> None:
    """ArgumentError or ModelError unless the drafter's drafts fit the target, and can be taken back."""
    streams = (plan is not None and plan.streams) or layers_of(model).own_windows
    if streams and drafter.longest > spare:
        raise ArgumentError(
            f"generate: the drafter submits up to {drafter.longest} tokens, but layers that stream, or have windows of "
            f"their own, take back at most spare = {spare}; give spare={drafter.longest} or more"
        )
    for stage in getattr(drafter, "stages", ()):
        if (other := stage.model) is None:
            continue
        decoder = decoder_of(other)
        check_vocabularies(vocabulary_size(other), vocabulary, tokenizer)
        if other is not model and decoder is model.get_decoder():
            raise ModelError(
                "generate: the draft model shares its layers with the target, as an adapter's base does, so it would "
                "draft with the adapter; load it a second time"
            )


def check_cache(
    cache: Runner, rows: list[Row], model: Decoder, plan: Plan | None, drafter: Drafter | None, cuda_graphs: bool | None
) -> None:
    """CacheError unless this call can go on with the cache of an earlier one."""
    if not isinstance(cache, Runner):
        raise CacheError(
            f"generate: cache= must be result.cache of an earlier call, got {type(cache).__name__}; "
            f"transformers' caches go into the model's own generate, after zigzag.attach(model, plan)"
        )
    if len(rows) != 1 or cache.host.model is not model or cache.plan != plan:
        raise CacheError("generate: cache= must come from an earlier call with one row, this model and this plan")
    if getattr(drafter, "wants_hidden", False) and any(map(len, cache.tokens)):
        raise CacheError(
            "generate: a drafter that reads the target's states needs them from the start: leave out cache=, or call "
            "its reset()"
        )
    cache.check_valid()
    if cache.weights not in (None, weights_state(model)):
        raise CacheError(
            "generate: the weights of the model, or its active adapters, have changed since cache= was filled: "
            "leave it out, or call its reset()"
        )
    fixed = isinstance(cache.store, FixedStore)
    if fixed and cuda_graphs is False:
        raise CacheError(
            "generate: cache= is one at fixed addresses, for CUDA graphs, which cannot be with cuda_graphs=False"
        )
    if not fixed and cuda_graphs:
        raise CacheError("generate: cache= is one that grows, which cannot be with cuda_graphs=True")


def check_rope(
    model: Decoder, rows: list[Row], cache: Runner | None, drafter: Drafter | None, prefill_chunk_size: int | None
) -> None:
    """ModelError where the rotary embedding would depend on what else is fed; see `running.rope`."""
    held = 0 if cache is None else int(cache.lengths.max(initial=0))
    shortest = min(min(row.start - 1, held or row.start) for row in rows)
    check_lengths(model, shortest, max(row.end for row in rows) + (0 if drafter is None else drafter.longest))
    first = first_piece(model.config.get_text_config(decoder=True), max(row.end for row in rows))
    if prefill_chunk_size is not None and prefill_chunk_size < first and held < first:
        raise ModelError(
            f"generate: the rotary embedding of {type(model).__name__} (longrope) needs the first {first} tokens of a "
            f"longer text at once, and prefill_chunk_size is {prefill_chunk_size}; leave it out, or give {first}"
        )
