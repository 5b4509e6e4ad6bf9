"""What `generate` was asked for: its arguments, then what generation_config sets, then defaults."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig

from zigzag.defaults import MAX_NEW_TOKENS, MIN_P, TEMPERATURE, TOP_K, TOP_P
from zigzag.generation.inputs import eos_tokens, real, whole
from zigzag.models.decoder import Decoder
from zigzag.reference.errors import ArgumentError

WAY_OUT = "to do without it give generation_config=GenerationConfig(), or one with the rest"

# Of GenerationConfig: what this module reads, and what `generation.configured` makes processors of.
HONOURED = (
    "max_length max_new_tokens min_length min_new_tokens max_time stop_strings eos_token_id do_sample temperature "
    "top_k top_p min_p num_return_sequences sequence_bias encoder_repetition_penalty repetition_penalty "
    "no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids forced_bos_token_id forced_eos_token_id "
    "remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens prefill_chunk_size"
).split()

# What changes no token: the same probabilities, of beams alone, how transformers' own loop computes or drafts.
HARMLESS = (
    "renormalize_logits early_stopping length_penalty low_memory use_cache max_cache_len compile_config "
    "disable_compile continuous_batching_config use_mtp is_assistant num_assistant_tokens "
    "num_assistant_tokens_schedule assistant_confidence_threshold prompt_lookup_num_tokens max_matching_ngram_size "
    "assistant_early_exit assistant_lookbehind target_lookbehind speculation_type return_dict_in_generate "
    "pad_token_id bos_token_id decoder_start_token_id transformers_version"
).split()

# What is refused: the values that ask for nothing, and what to do instead.
BEAMS, DROP = "beams are not searched here", "there is nothing like it here"
OUTPUTS, CACHES = (
    "ask for logprobs=True, or call the model itself",
    "the cache is this loop's own, see plan= and spare=",
)
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "num_beams": ((1,), BEAMS),
    "num_beam_groups": ((1,), BEAMS),
    "diversity_penalty": ((0,), BEAMS),
    "constraints": ((), BEAMS),
    "force_words_ids": ((), BEAMS),
    "penalty_alpha": ((0,), DROP),
    "dola_layers": ((), DROP),
    "guidance_scale": ((1,), DROP),
    "token_healing": ((False,), DROP),
    "watermarking_config": ((), "give its processor as logits_processor=, which comes before top-k and top-p"),
    "assistant_ensemble_weight": ((), "lossy rules are asked for with rule="),
    "cache_implementation": (("dynamic", "static", "hybrid"), CACHES),
    "cache_config": ((), CACHES),
    "output_attentions": ((False,), OUTPUTS),
    "output_hidden_states": ((False,), OUTPUTS),
    "output_scores": ((False,), OUTPUTS),
    "output_logits": ((False,), OUTPUTS),
}
WHEN_SAMPLING: dict[str, tuple[tuple[Any, ...], str]] = {
    "typical_p": ((1,), "use top_p or min_p"),
    "epsilon_cutoff": ((0, 1), "use min_p"),
    "eta_cutoff": ((0, 1), "use min_p"),
    "top_h": ((), "use top_p or min_p"),
}


@dataclass(frozen=True)
class Settings:
    """One call's settings.

    most: new tokens of a row, or longest: tokens of a row with its prompt; one of them
    eos: tokens that end a row; stop: strings that do
    prefill_chunk_size: most tokens of a forward over a prompt, None where nobody said
    config: where they were not given, for the processors that it asks for
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    most: int | None
    longest: int | None
    eos: frozenset[int]
    stop: tuple[str, ...]
    num_return_sequences: int
    prefill_chunk_size: int | None
    config: GenerationConfig

    def end(self, row: int, prompt: int) -> int:
        """Most tokens of a row with so many in its prompt; ArgumentError if none is left to generate."""
        if self.most is not None:
            return prompt + self.most
        if self.longest is None or self.longest <= prompt:
            raise ArgumentError(
                f"generate: generation_config says max_length={self.longest}, but row {row} holds {prompt} tokens "
                f"already; give max_new_tokens="
            )
        return self.longest


def settings(
    model: Decoder,
    vocabulary: int,
    config: Any,
    *,
    max_new_tokens: Any,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    min_p: Any,
    eos_token_id: Any,
    stop: Any,
    num_return_sequences: Any,
    prefill_chunk_size: Any,
) -> Settings:
    """The settings of one call; arguments that are None were not given. ArgumentError for what cannot be honoured."""
    own = _own_config(model)
    config = own if config is None else config
    if not isinstance(config, GenerationConfig):
        raise ArgumentError(f"generate: generation_config must be a GenerationConfig, got {type(config).__name__}")
    if temperature is None and config.do_sample is False:
        given = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
        for name in [name for name, value in given.items() if value is not None]:
            raise ArgumentError(
                f"generate: generation_config says do_sample=False, so {name} would do nothing; give temperature, too"
            )
        temperature = 0.0
    warmth = real("temperature", _first(temperature, config.temperature, TEMPERATURE))
    check_fields(config, warmth)
    most = _first(max_new_tokens, config.max_new_tokens, MAX_NEW_TOKENS if config.max_length is None else None)
    eos = _first(eos_token_id, config.eos_token_id, own.eos_token_id)
    sequences = whole("num_return_sequences", _first(num_return_sequences, config.num_return_sequences, 1), 1)
    if sequences > 1 and warmth == 0:
        raise ArgumentError(
            f"generate: num_return_sequences={sequences} would give the same row at temperature 0; give temperature="
        )
    piece = _first(prefill_chunk_size, config.prefill_chunk_size)
    return Settings(
        warmth,
        whole("top_k", _first(top_k, config.top_k, TOP_K), 0),
        real("top_p", _first(top_p, config.top_p, TOP_P)),
        real("min_p", _first(min_p, config.min_p, MIN_P)),
        None if most is None else whole("max_new_tokens", most, 1),
        None if most is not None else whole("max_length", config.max_length, 1),
        eos_tokens(eos, vocabulary),
        _strings(_first(stop, config.stop_strings, ())),
        sequences,
        None if piece is None else whole("prefill_chunk_size", piece, 1),
        config,
    )


def check_fields(config: GenerationConfig, temperature: float) -> None:
    """ArgumentError if the configuration asks for something that is not honoured, or that nobody here knows."""
    refused = REFUSED if temperature == 0 else REFUSED | WHEN_SAMPLING
    for name, value in vars(config).items():
        if name.startswith("_") or not is_set(value) or name in HONOURED or name in HARMLESS:
            continue
        if name not in REFUSED | WHEN_SAMPLING:
            raise ArgumentError(
                f"generate: generation_config says {name}={value!r}, which this version of zigzag does not know; "
                f"{WAY_OUT}"
            )
        neutral, instead = refused.get(name, ((value,), ""))
        if value not in neutral:
            raise ArgumentError(
                f"generate: generation_config says {name}={value!r}, which cannot be honoured: {instead}; {WAY_OUT}"
            )


def is_set(value: Any) -> bool:
    """Whether a field of a configuration asks for something: not for None, and not for an empty list."""
    return value is not None and not (isinstance(value, Sequence | dict | set) and len(value) == 0)


def _own_config(model: Decoder) -> GenerationConfig:
    """The model's, made of its config where it brings none, as transformers does."""
    own = getattr(model, "generation_config", None)
    return GenerationConfig.from_model_config(model.config) if own is None else own


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _strings(stop: Any) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else stop
    if not isinstance(strings, Sequence) or not all(isinstance(text, str) and text for text in strings):
        raise ArgumentError(f"generate: stop must be a string, or several, none of them empty, got {stop!r}")
    return tuple(strings)
