"""What a model's generation_config asks for: as transformers does it, or refused by name; no field is forgotten."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generations import TREE, near, prompts, target
from models import VOCAB, tiny_tokenizer
from transformers import GenerationConfig
from transformers.generation import RepetitionPenaltyLogitsProcessor

from zigzag import ArgumentError, ModelError, generate
from zigzag.generation.configured import MAKERS, Place, configured
from zigzag.generation.drafting import ModelDrafter
from zigzag.generation.settings import HARMLESS, HONOURED, REFUSED, WHEN_SAMPLING, check_fields

PAGE = (Path(__file__).resolve().parents[1] / "docs/generation.md").read_text()
EOS = 62  # a token that the target's greedy text holds early
MOST = 8


def fields(config: GenerationConfig) -> set[str]:
    return {name for name in vars(config) if not name.startswith("_")}


def unclassified(config: GenerationConfig) -> set[str]:
    return fields(config) - {*HONOURED, *HARMLESS, *REFUSED, *WHEN_SAMPLING}


def test_every_field_is_classified_once() -> None:
    """A field of a newer transformers fails here, instead of being dropped."""
    assert unclassified(GenerationConfig()) == set()
    assert unclassified(GenerationConfig(brand_new=1)) == {"brand_new"}  # the check can fail
    groups = [*HONOURED, *HARMLESS, *REFUSED, *WHEN_SAMPLING]
    assert len(groups) == len(set(groups)) and MAKERS.keys() <= set(HONOURED)
    assert [name for name in groups if f"`{name}`" not in PAGE] == []


def model_with(**values: Any) -> Any:
    model = target()
    model.generation_config = GenerationConfig(**values)
    return model


BARE = target()  # never changed: configurations are given beside it


def texts() -> list[list[int]]:
    """One holds half of the vocabulary, so that repeating matters; one is of one token, for what begins a text."""
    return [[*range(1, VOCAB, 2)], prompts()[2]]


def theirs(config: GenerationConfig, text: list[int], **options: Any) -> list[int]:
    ids = torch.tensor([text])
    made = BARE.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config, pad_token_id=0, **options)
    return made[0, len(text) :].tolist()


def plain() -> list[list[int]]:
    return generate(BARE, texts(), temperature=0, max_new_tokens=MOST).new_tokens


FIRST, SECOND = plain()[0][:2]
CASES: dict[str, dict[str, Any]] = {
    "max_length": {"max_length": 51},
    "max_new_tokens": {"max_new_tokens": 5},
    "min_length": {"min_length": 52, "eos_token_id": [FIRST, EOS]},
    "min_new_tokens": {"min_new_tokens": 6, "min_length": 100, "eos_token_id": [FIRST, EOS]},
    "stop_strings": {"stop_strings": [tiny_tokenizer().decode([SECOND])]},
    "eos_token_id": {"eos_token_id": SECOND},
    "sequence_bias": {"sequence_bias": [[[FIRST], -9.0], [[3, 4], 5.0]]},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 3.0},
    "repetition_penalty": {"repetition_penalty": 2.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": [[FIRST], [3, 4]], "eos_token_id": EOS},
    "forced_bos_token_id": {"forced_bos_token_id": 9},
    "forced_eos_token_id": {"forced_eos_token_id": 9, "max_length": 53},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (2, 1.9), "eos_token_id": EOS},
    "suppress_tokens": {"suppress_tokens": [FIRST, SECOND]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [FIRST]},
}
ELSEWHERE = {  # fields with a test of their own below, or in test_generation_arguments.py, test_criteria.py
    "do_sample", "temperature", "top_k", "top_p", "min_p", "num_return_sequences", "remove_invalid_values", "max_time",
    "prefill_chunk_size",
}  # fmt: skip


def test_every_honoured_field_has_a_case() -> None:
    assert CASES.keys() | ELSEWHERE == set(HONOURED) and not CASES.keys() & ELSEWHERE


@pytest.mark.parametrize("name", CASES)
def test_honoured_as_by_transformers(name: str) -> None:
    """Without drafts, and node by node in a tree of drafts; each case changes the text, or it would say nothing."""
    case = {"max_new_tokens": MOST, **CASES[name]}
    if "max_length" in CASES[name]:
        del case["max_new_tokens"]
    options = {"tokenizer": tiny_tokenizer()} if name == "stop_strings" else {}
    some = texts()[:1] if name in ("max_length", "min_length", "forced_eos_token_id") else texts()
    want = [theirs(GenerationConfig(**case, do_sample=False), text, **options) for text in some]
    for drafter in (None, ModelDrafter(near(BARE), parents=TREE)):
        asked = GenerationConfig(**case)
        got = generate(BARE, some, temperature=0, drafter=drafter, generation_config=asked, **options)
        assert got.new_tokens == want
    if name in ("max_length", "max_new_tokens"):
        assert [len(new) for new in want] == [3 if name == "max_length" else 5] * len(want)
    else:
        asked = GenerationConfig(**{key: value for key, value in case.items() if key not in (name, "min_length")})
        assert generate(BARE, some, temperature=0, generation_config=asked).new_tokens != want


def test_a_prompt_that_no_processor_reads_is_not_copied() -> None:
    """Of 131,072 tokens that takes milliseconds in every call."""
    place = Place.of([1, 2], 9, {5}, "cpu")
    assert (place.start, place.eos) == (2, [5])
    assert configured(GenerationConfig(min_new_tokens=None), [place], 9) == [[]] and "prompt" not in vars(place)
    (found,) = configured(GenerationConfig(encoder_no_repeat_ngram_size=2), [place], 9)
    assert len(found) == 1 and place.prompt.tolist() == [[1, 2]]


def test_new_tokens_go_before_all_tokens() -> None:
    """As in transformers min_length is not looked at beside min_new_tokens."""
    place = Place.of([1, 2], 9, {5}, "cpu")

    def made(**values: Any) -> list[str]:
        return [type(one).__name__ for one in configured(GenerationConfig(**values), [place], VOCAB)[0]]

    assert made(min_length=4, min_new_tokens=2) == ["MinNewTokensLengthLogitsProcessor"]
    assert made(min_length=4) == ["MinLengthLogitsProcessor"]
    assert made(min_length=0, repetition_penalty=1.0, no_repeat_ngram_size=0) == []


def test_a_whole_number_may_be_a_penalty() -> None:
    """Where transformers takes a float alone."""
    one, two = (
        generate(model_with(repetition_penalty=value), texts(), temperature=0, max_new_tokens=6) for value in (2, 2.0)
    )
    assert one.sequences == two.sequences


def test_invalid_values_are_removed() -> None:
    model = target()
    model.lm_head.register_forward_hook(lambda module, args, out: out * torch.nan)
    with pytest.raises(ModelError, match="NaN"):
        generate(model, [[1, 2]], temperature=0, max_new_tokens=3)
    asked = GenerationConfig(remove_invalid_values=True)
    got = generate(model, [[1, 2]], temperature=0, max_new_tokens=3, generation_config=asked)
    assert got.new_tokens == [[0, 0, 0]]


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p"])
def test_sampling_of_the_configuration(name: str) -> None:
    """A value of the model is as one that was given; a given one wins; one that is None was not given."""
    value, other = {"temperature": (0.3, 1.0), "top_k": (2, 0), "top_p": (0.2, 1.0), "min_p": (0.6, 0.0)}[name]
    bare, model = target(), model_with(do_sample=True, **{name: value})
    options = {"max_new_tokens": 6, "seed": 5}
    want = generate(bare, texts(), **{name: value}, **options).sequences
    unset = generate(bare, texts(), **options).sequences
    assert unset != want
    assert generate(model, texts(), **options).sequences == want
    assert generate(model, texts(), **{name: None}, **options).sequences == want
    assert generate(model, texts(), **{name: other}, **options).sequences == unset
    assert generate(model, texts(), generation_config=GenerationConfig(), **options).sequences == unset


def test_defaults_of_transformers_are_not_taken() -> None:
    """top_k=50 and max_length=20 are what transformers does where nobody says anything; 128 tokens of all is ours."""
    got = generate(model_with(do_sample=True), [[1, 2, 3]])
    assert len(got.new_tokens[0]) == 128
    assert got.sequences == generate(target(), [[1, 2, 3]], temperature=1.0, top_k=0, top_p=1.0, min_p=0.0).sequences
    assert got.sequences != generate(target(), [[1, 2, 3]], top_k=50).sequences


def test_greedy_models() -> None:
    """do_sample=False is temperature 0, unless a temperature is given; what would do nothing then is refused."""
    model = model_with(do_sample=False, temperature=0.7)
    greedy = generate(target(), texts(), temperature=0, max_new_tokens=8).sequences
    assert generate(model, texts(), max_new_tokens=8).sequences == greedy
    drawn = generate(target(), texts(), temperature=2.0, max_new_tokens=8).sequences
    assert generate(model, texts(), temperature=2.0, max_new_tokens=8).sequences == drawn != greedy
    for name, value in {"top_k": 3, "top_p": 0.5, "min_p": 0.1}.items():
        with pytest.raises(ArgumentError, match=f"do_sample=False, so {name} would do nothing; give temperature"):
            generate(model, texts(), **{name: value})
        generate(model, texts()[1:2], temperature=1.0, max_new_tokens=2, **{name: value})


def test_lengths() -> None:
    """An argument before max_new_tokens before max_length, which counts the prompt and must leave room."""
    model, text = model_with(max_length=9, max_new_tokens=4), [1, 2, 3]
    assert len(generate(model, [text], max_new_tokens=2).new_tokens[0]) == 2
    assert len(generate(model, [text]).new_tokens[0]) == 4
    model.generation_config.max_new_tokens = None
    assert [len(row) for row in generate(model, [text, [1]]).sequences] == [9, 9]
    with pytest.raises(ArgumentError, match=r"max_length=9, but row 1 holds 9 tokens already; give max_new_tokens="):
        generate(model, [text, [1] * 9])
    assert len(generate(model, [[1] * 9], max_new_tokens=1).new_tokens[0]) == 1
    for length, words in (
        (1, "max_length=1, but row 0 holds 1 tokens already"),
        (0, "max_length must be .* at least 1"),
    ):
        model.generation_config.max_length = length
        with pytest.raises(ArgumentError, match=words):
            generate(model, [[1]])


def test_end_of_sequence() -> None:
    """Given, else of the configuration, else of the model; [] is none."""
    model = model_with(eos_token_id=[SECOND])
    options = {"temperature": 0, "max_new_tokens": 6}
    assert generate(model, texts()[:1], **options).finish_reasons == ["eos"]
    assert generate(model, texts()[:1], generation_config=GenerationConfig(), **options).finish_reasons == ["eos"]
    assert generate(model, texts()[:1], eos_token_id=[], **options).finish_reasons == ["length"]
    first = generate(model, texts()[:1], generation_config=GenerationConfig(eos_token_id=FIRST), **options)
    assert first.new_tokens == [[FIRST]]
    assert generate(model, texts()[:1], eos_token_id=np.int64(FIRST), **options).new_tokens == [[FIRST]]
    model.generation_config.eos_token_id = -1
    with pytest.raises(ArgumentError, match=r"eos_token_id must be tokens in \[0, 96\), got -1; \[\] for none"):
        generate(model, texts(), **options)


ASKS = {
    "num_beams": 4,
    "num_beam_groups": 2,
    "diversity_penalty": 0.5,
    "constraints": ["x"],
    "force_words_ids": [[1]],
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "guidance_scale": 1.5,
    "token_healing": True,
    "watermarking_config": {"bias": 2.0},
    "assistant_ensemble_weight": 0.5,
    "cache_implementation": "quantized",
    "cache_config": {"nbits": 4},
    "output_attentions": True,
    "output_hidden_states": True,
    "output_scores": True,
    "output_logits": True,
    "typical_p": 0.5,
    "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.1,
    "top_h": 0.4,
}


@pytest.mark.parametrize("name", [*REFUSED, *WHEN_SAMPLING, "brand_new"])
def test_refused_by_name(name: str) -> None:
    """Before any work, with the way out; and not where the value asks for nothing."""
    model = target()
    config = model.generation_config = GenerationConfig()
    setattr(config, name, ASKS.get(name, 7))
    model.forward = None
    with pytest.raises(ArgumentError, match=rf"says {name}=.*GenerationConfig\(\)"):
        generate(model, [[1, 2]], temperature=1.0, max_new_tokens=2)
    model = target()
    for value in (None, [], *{**REFUSED, **WHEN_SAMPLING}.get(name, ((),))[0]):
        setattr(config, name, value)
        generate(model, [[1, 2]], temperature=1.0, max_new_tokens=1, generation_config=config)


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("num_beams", 2, "beams are not searched here"),
        ("force_words_ids", [[1]], "beams are not searched here"),
        ("dola_layers", "low", "there is nothing like it here"),
        ("penalty_alpha", 0.6, "there is nothing like it here"),
        ("cache_config", {"nbits": 4}, "the cache is this loop's own, see plan= and spare="),
        ("output_scores", True, "ask for logprobs=True, or call the model itself"),
        ("typical_p", 0.5, "use top_p or min_p"),
        ("epsilon_cutoff", 0.1, "use min_p"),
    ],
)
def test_what_to_do_instead_is_told(name: str, value: Any, instead: str) -> None:
    """Also of fields that this version of transformers does not have."""
    config = GenerationConfig()
    setattr(config, name, value)
    words = f"says {name}={value!r}, which cannot be honoured: {instead}; to do without it give generation_config="
    with pytest.raises(ArgumentError, match=re.escape(words)):
        check_fields(config, 1.0)


def test_only_sampling_asks_for_it() -> None:
    """At temperature 0 transformers does not look at these either."""
    want = generate(target(), [[1, 2]], temperature=0, max_new_tokens=4).sequences
    for name in WHEN_SAMPLING:
        model = model_with(**{name: ASKS[name]})
        assert generate(model, [[1, 2]], temperature=0, max_new_tokens=4).sequences == want
    with pytest.raises(ArgumentError, match="num_beams=2"):
        generate(model_with(num_beams=2), [[1, 2]], temperature=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("bad_words_ids", [[VOCAB]]), ("suppress_tokens", 5), ("repetition_penalty", -1), ("sequence_bias", 3)],
)
def test_values_that_transformers_refuses(name: str, value: Any) -> None:
    config = GenerationConfig()
    setattr(config, name, value)
    model = target()
    model.forward = None
    with pytest.raises(ArgumentError, match=f"generation_config says {name}="):
        generate(model, [[1, 2]], generation_config=config)


def test_a_processor_takes_the_place_of_its_like() -> None:
    """As in transformers; another type is added."""
    model, own = model_with(repetition_penalty=3.0), RepetitionPenaltyLogitsProcessor(1.1)
    options = {"temperature": 0, "max_new_tokens": 6}
    want = generate(model_with(repetition_penalty=1.1), texts(), **options).sequences
    assert generate(model, texts(), logits_processor=[own], **options).sequences == want
    assert generate(model, texts(), **options).sequences != want
    both = generate(model, texts(), logits_processor=lambda ids, scores: scores.roll(1, -1), **options).sequences
    assert (
        both
        != generate(target(), texts(), logits_processor=lambda ids, scores: scores.roll(1, -1), **options).sequences
    )


def test_a_model_without_a_generation_config() -> None:
    model = target()
    model.generation_config, model.config.eos_token_id = None, SECOND
    assert generate(model, texts()[:1], temperature=0, max_new_tokens=6).finish_reasons == ["eos"]


NEUTRAL = {
    "num_beams": [1],
    "num_beam_groups": [1],
    "diversity_penalty": [0, 0.0],
    "penalty_alpha": [0, 0.0],
    "guidance_scale": [1, 1.0],
    "token_healing": [False],
    "cache_implementation": ["dynamic", "static", "hybrid"],
    "output_attentions": [False],
    "output_hidden_states": [False],
    "output_scores": [False],
    "output_logits": [False],
    "typical_p": [1, 1.0],
    "epsilon_cutoff": [0, 0.0, 1, 1.0],
    "eta_cutoff": [0, 0.0, 1, 1.0],
}


def test_values_that_ask_for_nothing() -> None:
    """Known by name, and no others: what is refused says that it cannot be honoured."""
    known = REFUSED | WHEN_SAMPLING
    assert NEUTRAL.keys() == {name for name, (neutral, _) in known.items() if neutral}
    for name in known:
        for value in (*NEUTRAL.get(name, ()), -1, 2):
            config = GenerationConfig()
            setattr(config, name, value)
            if value in NEUTRAL.get(name, ()):
                check_fields(config, 1.0)
                continue
            with pytest.raises(ArgumentError, match=f"says {name}={value!r}, which cannot be honoured"):
                check_fields(config, 1.0)


def test_least_length_without_a_token_that_ends_a_row() -> None:
    model = target()
    config = GenerationConfig(min_length=30)
    assert len(generate(model, [[1, 2]], generation_config=config, max_new_tokens=3).new_tokens[0]) == 3
