"""What users of other projects reported and no other file tries; docs/reports.md is the log."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from models import SIZES, random_ids, tiny_llama
from test_training_under_plan import checkpointed
from torch import nn
from transformers import DynamicCache, GenerationConfig, Starcoder2Config, Starcoder2ForCausalLM

import zigzag
from zigzag import CacheError, HeadPlan, LayerPlan, ModelError, generate
from zigzag.running.fixed import FixedStore
from zigzag.running.host import Host
from zigzag.running.runner import Runner

PLANS = {
    "layers": LayerPlan(("streaming", "full", "streaming"), sink=2, recent=6),
    "heads": HeadPlan(((True, False), (False, False), (True, True)), sink=2, recent=6),
}
PLAN = PLANS["layers"]
EACH_PLAN = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
IDS = random_ids(1, 30)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # peft asks for it
    pytest.mark.filterwarnings("ignore::UserWarning"),  # peft of merging and tied weights, torch of graph breaks
]


def model64() -> Any:
    return tiny_llama(dtype=torch.float64)


def tokens(model: Any, ids: Any = IDS, **options: Any) -> list[int]:
    return generate(model, ids, temperature=0, max_new_tokens=8, **options).sequences[0]


def attached_tokens(model: Any, ids: torch.Tensor | None = IDS, **options: Any) -> list[list[int]]:
    rows: list[list[int]] = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False, **options).tolist()
    return rows


@torch.no_grad()
def filled(model: Any, ids: torch.Tensor) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    model(ids, past_key_values=cache)
    return cache


# Caches


@EACH_PLAN
def test_copies_of_a_prompt_cache(plan: Any) -> None:
    """The prompt is computed once; each continuation has a copy of its cache, also repeated, and saved."""
    model = zigzag.attach(model64(), plan, spare=4)
    cache = filled(model, IDS[:, :20])
    texts = [torch.cat([IDS[:, :20], random_ids(1, 6, seed)], dim=1) for seed in (3, 4)]
    wanted = [attached_tokens(model, text)[0] for text in texts]
    assert wanted[0][26:] != wanted[1][26:]
    for text, want in zip(texts, wanted, strict=True):
        assert attached_tokens(model, text, past_key_values=copy.deepcopy(cache)) == [want]
    cache.batch_repeat_interleave(2)
    assert attached_tokens(model, torch.cat(texts), past_key_values=cache) == wanted


@pytest.mark.parametrize("plan", [None, *PLANS.values()], ids=["full", *PLANS])
def test_copies_of_the_cache_of_a_result(plan: Any) -> None:
    """They share the model and nothing else."""
    model = model64()
    first = generate(model, IDS, plan=plan, temperature=0, max_new_tokens=4)
    held = [list(row) for row in first.cache.tokens]
    for more in ([5], [7, 9]):
        text = [first.sequences[0] + more]
        cache = copy.deepcopy(first.cache)
        assert tokens(model, text, plan=plan, cache=cache) == tokens(model, text, plan=plan)
    assert first.cache.tokens == held
    assert tokens(model, first.sequences, plan=plan, cache=first.cache) == tokens(model, first.sequences, plan=plan)


def test_a_copy_at_fixed_addresses_captures_its_own_steps() -> None:
    host = Host(model64())
    with host, torch.inference_mode():
        runner = Runner(host, FixedStore(PLAN, host.layers, host.device, graphs=False))
        runner.fill([IDS[0].tolist()])
        runner.store.steps._steps["one"] = None
        other = copy.deepcopy(runner)
        assert list(runner.store.steps._steps) == ["one"]
        assert not other.store.steps._steps
        assert other.host is host
        logits = [each.sync([[*IDS[0].tolist(), token]]).logits for each, token in ((runner, 5), (other, 7))]
        fresh = Runner(host, FixedStore(PLAN, host.layers, host.device, graphs=False))
        torch.testing.assert_close(fresh.sync([[*IDS[0].tolist(), 7]]).logits, logits[1])
        assert not torch.allclose(*logits)


def adapted(names: tuple[str, ...] = ("one", "two"), **options: Any) -> Any:
    """A model with random adapters, of which the first is active."""
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, **options)
    torch.manual_seed(3)
    model = peft.get_peft_model(model64(), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.normal_(std=0.3)
    model.set_adapter(names[0])
    return model.eval()


def other_adapter(model: Any) -> None:
    model.set_adapter("two")


def no_adapter(model: Any) -> None:
    model.base_model.disable_adapter_layers()


def other_scale(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("one", 0.5)


def merged(model: Any) -> None:
    model.merge_adapter(["two"])


def same_name(model: Any) -> None:
    model.set_adapter("two")
    model.delete_adapter("one")
    model.add_adapter("one", peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    model.set_adapter("one")


def trained(model: Any) -> None:
    with torch.no_grad():
        model.get_decoder().norm.weight.mul_(1.5)


def reloaded(model: Any) -> None:
    model.load_state_dict({name: weight * 1.1 for name, weight in model.state_dict().items()})


def replaced(model: Any) -> None:
    """By another that was changed in place as often."""
    norm = model.get_decoder().norm
    new = nn.Parameter(norm.weight.detach() * 2)
    with torch.no_grad():
        while new._version < norm.weight._version:
            new.mul_(1)
    norm.weight = new


@pytest.mark.parametrize(
    "change",
    [other_adapter, no_adapter, other_scale, merged, same_name, trained, reloaded, replaced],
    ids=lambda change: change.__name__,
)
def test_a_cache_of_other_weights_is_refused(change: Callable[[Any], None]) -> None:
    model = adapted()
    first = generate(model, IDS, temperature=0, max_new_tokens=2)
    assert tokens(model, first.sequences, cache=first.cache) == tokens(model, first.sequences)
    held = [list(row) for row in first.cache.tokens]
    before, empty = tokens(model), copy.deepcopy(first.cache)
    empty.reset()
    change(model)
    after = tokens(model)
    assert after != before or change in (trained, replaced)  # the norm's scale is in all logits alike
    with pytest.raises(CacheError, match=r"weights of the model, or its active adapters, have changed.*reset"):
        tokens(model, cache=first.cache)
    assert first.cache.tokens == held
    first.cache.reset()
    assert tokens(model, cache=first.cache) == after
    assert tokens(model, cache=first.cache) == after  # filled anew
    assert tokens(model, cache=empty) == after


def test_weights_without_a_version() -> None:
    with torch.inference_mode():
        model = model64()
    first = generate(model, IDS, temperature=0, max_new_tokens=2)
    assert tokens(model, first.sequences, cache=first.cache) == tokens(model, first.sequences)


def test_a_cache_that_is_none() -> None:
    with pytest.raises(CacheError, match=r"result\.cache of an earlier call, got DynamicCache.*zigzag\.attach"):
        tokens(tiny_llama(), cache=DynamicCache())
    model = zigzag.attach(tiny_llama(), PLAN)
    with pytest.raises(CacheError, match="dynamic, not offloaded cache, got tuple"):
        model(IDS, past_key_values=((torch.zeros(1, 2, 3, 8),) * 2,) * 3)


@pytest.mark.parametrize("plan", [*PLANS.values(), LayerPlan(("full",) * 3, 2, 6)], ids=[*PLANS, "full"])
@pytest.mark.parametrize(("rows", "others"), [(1, 2), (2, 1), (2, 3)])
def test_a_cache_of_other_rows(plan: Any, rows: int, others: int) -> None:
    model = zigzag.attach(model64(), plan)
    cache = filled(model, random_ids(rows, 20))
    with pytest.raises(CacheError, match=f"holds {rows} rows, the tokens come in {others}.*batch_select_indices"):
        model(random_ids(others, 1), past_key_values=cache)
    assert cache.get_seq_length() == 20
    model(random_ids(rows, 1), past_key_values=cache)
    cache.reset()
    model(random_ids(others, 9), past_key_values=cache)
    with pytest.raises(CacheError, match="holds 1 rows, the tokens come in 2"):
        attached_tokens(model, past_key_values=filled(model, IDS[:, :20]), num_beams=2)


@EACH_PLAN
@pytest.mark.parametrize("length", [14, 16, 17, 25, 30, 31])
def test_a_cache_longer_than_the_text(plan: Any, length: int) -> None:
    """transformers' generate then feeds some tail of the text, behind all that the cache holds: of 14 tokens nothing,
    of 16 a single token."""
    model = zigzag.attach(model64(), plan)
    cache = DynamicCache(config=model.config)
    attached_tokens(model, past_key_values=cache)
    cache.crop(-(cache.get_seq_length() - 31))
    with pytest.raises(ModelError, match=r"no token to compute|go on where the cache ends, after 31 tokens.*continue"):
        attached_tokens(model, IDS[:, :length], past_key_values=cache)
    assert cache.get_seq_length() == 31


@EACH_PLAN
def test_single_tokens_of_padded_rows_have_their_own_positions(plan: Any) -> None:
    model = zigzag.attach(model64(), plan)
    ids, mask = random_ids(2, 20), torch.ones(2, 21, dtype=torch.long)
    mask[1, :7] = 0
    cache = DynamicCache(config=model.config)
    model(ids, attention_mask=mask[:, :20], past_key_values=cache)
    for wrong in ([[20], [20]], [[19], [13]]):
        with pytest.raises(ModelError, match="after 20 tokens"):
            model(ids[:, :1], attention_mask=mask, past_key_values=cache, position_ids=torch.tensor(wrong))
    model(ids[:, :1], attention_mask=mask, past_key_values=cache, position_ids=torch.tensor([[20], [13]]))


@EACH_PLAN
def test_inputs_embeds(plan: Any) -> None:
    """Alone, without a cache, and beside one that holds the beginning: then of the whole text, as in transformers."""
    model = zigzag.attach(model64(), plan)
    wanted = [row[30:] for row in attached_tokens(model)]
    embeds = model.get_input_embeddings()(IDS)
    for options in ({}, {"use_cache": False}, {"past_key_values": filled(model, IDS[:, :20])}):
        assert attached_tokens(model, None, inputs_embeds=embeds, **options) == wanted
    with pytest.raises(ModelError, match=r"no token to compute.*inputs_embeds of the whole text"):
        cache = filled(model, IDS[:, :20])
        attached_tokens(model, None, inputs_embeds=embeds[:, 20:], past_key_values=cache)


@pytest.mark.parametrize("first", ["full", "streaming"])
@pytest.mark.parametrize("length", [6, 20])
def test_an_oversized_crop(first: str, length: int) -> None:
    """Refused; where a full layer before was emptied already, the cache is refused from then on."""
    second = "full" if first == "streaming" else "streaming"
    model = zigzag.attach(model64(), LayerPlan((first, second, first), sink=2, recent=6))
    cache = filled(model, IDS[:, :length])
    with pytest.raises(CacheError, match=f"only {length} tokens were seen, cannot take back 25"):
        cache.crop(-25)
    if first == "full":
        with pytest.raises(CacheError, match="different numbers of tokens"):
            model(IDS[:, :1], past_key_values=cache)
        cache.reset()
    else:
        cache.crop(-length)
    assert torch.equal(model(IDS, past_key_values=cache).logits, model(IDS).logits)


@EACH_PLAN
def test_several_questions_on_one_cache(plan: Any) -> None:
    """The answer is cropped away before the next question, as far as `spare` reaches."""
    model = zigzag.attach(model64(), plan, spare=20)
    cache = filled(model, IDS[:, :20])
    for seed in (3, 4, 5):
        text = torch.cat([IDS[:, :20], random_ids(1, 5, seed)], dim=1)
        assert attached_tokens(model, text, past_key_values=cache) == attached_tokens(model, text)
        cache.crop(20 - cache.get_seq_length())
    attached_tokens(model, torch.cat([IDS[:, :20], random_ids(1, 15)], dim=1), past_key_values=cache)
    with pytest.raises(CacheError, match="spare = 20"):
        cache.crop(20 - cache.get_seq_length())


# Training mode


@pytest.mark.parametrize("options", [{}, {"plan": PLAN}, {"drafter": "lookup"}], ids=["full", "plan", "drafts"])
def test_generate_under_gradient_checkpointing(options: dict[str, Any]) -> None:
    """transformers takes the cache from each layer then, so that each token would see itself alone."""
    model = model64()
    wanted = tokens(model, **options)
    model.train()
    assert tokens(model, **options) == wanted
    first = generate(model, IDS, temperature=0, max_new_tokens=2, plan=options.get("plan"))
    checkpointed(model)
    with pytest.raises(ModelError, match=r"checkpointing keeps no cache.*eval"):
        tokens(model, **options)
    with pytest.raises(ModelError, match="checkpointing keeps no cache"):
        tokens(model64(), drafter=model)
    with pytest.raises(ModelError, match="checkpointing keeps no cache"):
        tokens(model, first.sequences, cache=first.cache, plan=options.get("plan"))
    model.eval()
    assert tokens(model, **options) == wanted
    first.cache.check_valid()


def starcoder2() -> Any:
    sizes = {name: size for name, size in SIZES.items() if name != "head_dim"}
    config = Starcoder2Config(**sizes, num_hidden_layers=2, residual_dropout=0.2, attention_dropout=0.0)
    return Starcoder2ForCausalLM(config)


@pytest.mark.parametrize(
    ("make", "name"),
    [(lambda: adapted(("one",), lora_dropout=0.3), "Dropout"), (starcoder2, "Starcoder2Attention")],
    ids=["lora", "starcoder2"],
)
def test_generate_with_dropout(make: Callable[[], Any], name: str) -> None:
    model = make().train()
    for call in (lambda: tokens(model), lambda: tokens(tiny_llama(), drafter=model)):
        with pytest.raises(ModelError, match=rf"training mode and {name} drops out.*eval"):
            call()
    for module in model.children():
        module.eval()
    assert model.training  # and yet nothing drops out
    assert tokens(model) == tokens(model)
    tokens(adapted(("one",)).train())  # nothing drops out


# Attention, hooks, wrappers


@pytest.mark.parametrize("what", ["module", "forward", "layers"])
def test_compiled_models(what: str) -> None:
    """Compiled before the plan comes and goes, whatever of the model was compiled."""
    model, plain = model64(), model64()
    compiled = model
    if what == "module":
        compiled = torch.compile(model, backend="eager")
    elif what == "forward":
        model.forward = torch.compile(model.forward, backend="eager")
    else:
        for layer in model.model.layers:
            layer.compile(backend="eager")
    logits = compiled(IDS).logits
    wanted = attached_tokens(zigzag.attach(plain, PLAN))
    zigzag.attach(compiled, PLAN)
    torch.testing.assert_close(compiled(IDS).logits, plain(IDS).logits)
    assert attached_tokens(compiled) == wanted
    zigzag.detach(compiled)
    torch.testing.assert_close(compiled(IDS).logits, logits)
    assert not torch.allclose(logits, plain(IDS).logits)
    assert tokens(compiled, plan=PLAN, drafter="lookup") == wanted[0]


def test_wrapped_in_data_parallel() -> None:
    """The wrapper is refused everywhere by one error; the model in it runs, in the wrapper too."""
    wrapped = nn.DataParallel(model64())
    calls: list[Callable[[], Any]] = [
        lambda: zigzag.attach(wrapped, PLAN),  # type: ignore[type-var]
        lambda: zigzag.detach(wrapped),  # type: ignore[type-var]
        lambda: tokens(wrapped),
        lambda: tokens(model64(), drafter=wrapped),
    ]
    for call in calls:
        with pytest.raises(ModelError, match=r"decoder model is needed, got DataParallel; give its \.module"):
            call()
    with pytest.raises(ModelError, match=r"got Linear$"):
        tokens(nn.Linear(2, 2))
    zigzag.attach(wrapped.module, PLAN)
    torch.testing.assert_close(wrapped(IDS, use_cache=False).logits, wrapped.module(IDS).logits)


class Int8Linear(nn.Module):
    """As quantised layers are: whole numbers in the weight, their scale beside it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.register_buffer("scale", weight.abs().amax(dim=1, keepdim=True) / 127)
        self.weight = nn.Parameter((weight / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states @ (self.weight.to(states.dtype) * self.scale).mT


@EACH_PLAN
def test_quantised_linear_layers(plan: Any) -> None:
    model = zigzag.attach(model64(), plan)
    before = model(IDS).logits
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))
    assert not torch.allclose(model(IDS).logits, before)
    wanted = attached_tokens(model)
    zigzag.detach(model)
    for drafter in (None, "lookup", "streaming"):
        assert tokens(model, plan=plan, drafter=drafter) == wanted[0]


@EACH_PLAN
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_dtype_after_attach(plan: Any, dtype: torch.dtype) -> None:
    model = zigzag.attach(tiny_llama(), plan).to(dtype)
    cache = filled(model, IDS)
    assert {keys.dtype for layer in cache.layers for keys in (layer.keys, layer.values)} == {dtype}
    assert attached_tokens(model) == attached_tokens(zigzag.attach(tiny_llama(dtype=dtype), plan))


@EACH_PLAN
def test_under_autocast(plan: Any) -> None:
    """Close to the exact logits, the cache in autocast's dtype, drafts and all."""
    model = zigzag.attach(tiny_llama(initializer_range=0.05), plan)
    exact = model(IDS).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(IDS).logits
        cache = filled(model, IDS[:, :20])
        rest = model(IDS[:, 20:], past_key_values=cache).logits
        assert len(tokens(model, drafter="lookup")) == 38
    off = float((logits - exact).abs().max() / exact.abs().max())
    assert 0 < off < 0.05
    assert float((rest - exact[:, 20:]).abs().max() / exact.abs().max()) < 0.05


# Adapters


@EACH_PLAN
def test_adapters_mixed_in_a_batch(plan: Any) -> None:
    """Each row by its own adapter, or by none."""
    model = adapted()
    wanted = []
    for name in ("one", "two"):
        model.set_adapter(name)
        wanted.append(tokens(model, plan=plan))
    with model.disable_adapter():
        wanted.append(tokens(model, plan=plan))
    assert len({tuple(row) for row in wanted}) == 3
    model.set_adapter("one")
    zigzag.attach(model, plan)
    names = ["one", "two", "__base__"]
    assert attached_tokens(model, IDS.repeat(3, 1), adapter_names=names) == wanted


@EACH_PLAN
def test_an_adapter_with_embedding_and_head_of_its_own(plan: Any) -> None:
    model = adapted(("one",), modules_to_save=["embed_tokens", "lm_head"])
    wanted = tokens(model, plan=plan)
    with model.disable_adapter():
        assert tokens(model, plan=plan) != wanted
    assert attached_tokens(zigzag.attach(model, plan)) == [wanted]
    assert attached_tokens(model.merge_and_unload()) == [wanted]


# Speculation


@pytest.mark.parametrize("limit", range(1, 9))
def test_an_end_beats_the_length_inside_a_draft(limit: int) -> None:
    """A draft that is right all the way crosses the end and the limit in one round: what comes first counts."""
    model = model64()
    plain = tokens(model)[30:]
    end = next(token for n, token in enumerate(plain) if n == 3)
    first = plain.index(end) + 1
    options = {"temperature": 0, "max_new_tokens": limit, "eos_token_id": [end], "logprobs": True}
    for drafter in (None, model64()):
        got = generate(model, IDS, drafter=drafter, num_draft_tokens=8, **options)
        assert got.new_tokens == [plain[: min(first, limit)]]
        assert got.finish_reasons == ["eos" if first <= limit else "length"]
        assert [len(row) for row in got.logprobs] == [min(first, limit)]


@pytest.mark.parametrize(
    "option", [{"repetition_penalty": 1.7}, {"min_new_tokens": 6}, {"no_repeat_ngram_size": 1}], ids=str
)
def test_penalties_count_every_accepted_token(option: dict[str, Any]) -> None:
    """Of several tokens accepted in one round each is punished from the next token on."""
    model = model64()
    ends = {"eos_token_id": tokens(model)[31]} if "min_new_tokens" in option else {}
    options: dict[str, Any] = {"generation_config": GenerationConfig(**option), **ends}
    wanted = tokens(model, **options)
    plain = tokens(model, **ends)
    got = generate(model, IDS, temperature=0, max_new_tokens=8, drafter=model64(), num_draft_tokens=5, **options)
    assert got.sequences == [wanted]
    assert wanted != plain
    assert got.statistics.tokens_per_verification > 2


# The log itself


def untested(page: str) -> list[str]:
    """Rows of the table that name no test, or one that is not there."""
    found = []
    for row in re.findall(r"^\| (?!\*\*|report |---)(.*) \|$", page, flags=re.MULTILINE):
        named = re.findall(r"`(test_\w+)::(test_\w+)`", row.split(" | ")[-1])
        files = [Path(__file__).parent / f"{file}.py" for file, _ in named]
        there = [f.exists() and f"\ndef {name}(" in f.read_text() for f, (_, name) in zip(files, named, strict=True)]
        if not named or not all(there):
            found.append(row)
    return found


def test_every_row_of_the_log_has_its_test() -> None:
    page = (Path(__file__).parent.parent / "docs/reports.md").read_text()
    assert untested(page) == []
    assert page.count("::test_") > 40
    for wrong in ("| one#1 | a | b | none |", "| two#2 | a | b | `test_reports::test_not_there` |"):
        assert untested(f"{page}\n{wrong}\n") == [wrong[2:-2]]
