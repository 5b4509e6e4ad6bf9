"""Who else has a hand in the model: threads, callbacks, adapters, other handles, other settings.

Each works, or is refused with one clear error; afterwards the model is as it was.
"""

import copy
import io
import threading
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from models import SIZES, random_ids, tiny_glm4_moe, tiny_llama
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    DynamicCache,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GenerationConfig,
    MaxLengthCriteria,
)
from windowed_models import tiny

import zigzag
from zigzag import CacheError, LayerPlan, ModelError
from zigzag.generation.drafting import LookupDrafter
from zigzag.measuring.prompts import Prompt
from zigzag.running.host import Host
from zigzag.running.opening import open_runner

PLAN = LayerPlan(("streaming", "full", "streaming"), sink=2, recent=6)
IDS = random_ids(1, 20)
PROMPTS = [Prompt(tuple(IDS[0, :-1].tolist()), (5,), depth=0.0, seed=0)]
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it


def everything(model: Any) -> Any:
    """What zigzag may touch of a model: settings, hooks, replaced forwards, marks."""
    configs = [model.config, *(getattr(model.config, name) for name in model.config.sub_configs)]
    settings = [(c._attn_implementation, getattr(c, "_experts_implementation", None)) for c in configs]
    modules = [
        (
            len(m._forward_hooks),
            len(m._forward_pre_hooks),
            sorted(n for n in vars(m) if "zigzag" in n or n == "forward"),
        )
        for m in model.modules()
    ]
    return settings, modules


def attached_tokens(model: Any) -> list[int]:
    return model.generate(input_ids=IDS, max_new_tokens=8, do_sample=False)[0].tolist()


@pytest.fixture(scope="module")
def wanted() -> list[int]:
    model = zigzag.attach(tiny_llama(), PLAN)
    tokens = attached_tokens(model)
    assert attached_tokens(zigzag.detach(model)) != tokens
    return tokens


def tokens(model: Any, **options: Any) -> list[int]:
    return zigzag.generate(model, IDS, temperature=0, max_new_tokens=8, **options).sequences[0]


def test_states_of_a_forward_that_another_thread_began_before() -> None:
    """An attached model's; it ends between the decoder of the first thread and the reading of its states."""
    model = zigzag.attach(tiny_llama(), PLAN)
    inside, going_on = threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        if threading.current_thread() is other:
            inside.set()
            assert going_on.wait(60)

    def let_go(*_: Any) -> None:
        if threading.current_thread() is not other:
            going_on.set()
            other.join(60)

    other = threading.Thread(target=lambda: model(IDS[:, :5]), daemon=True)
    model.model.layers[-1].register_forward_hook(hold)
    other.start()
    assert inside.wait(60)
    model.lm_head.register_forward_hook(let_go)
    with Host(model) as host, torch.inference_mode():
        states = open_runner(host, PLAN).sync([IDS[0].tolist()]).states
        assert not other.is_alive()
        alone = open_runner(host, PLAN).sync([IDS[0].tolist()]).states
    assert torch.equal(states, alone)


def test_everything_sees_what_a_plan_does() -> None:
    model = tiny_llama()
    before = everything(model)
    zigzag.attach(model, PLAN)
    assert everything(model) != before
    zigzag.detach(model)
    assert everything(model) == before
    with Host(model):
        assert everything(model) != before
    assert everything(model) == before


# Threads and callbacks


def test_two_threads_one_model(wanted: list[int]) -> None:
    """The second is refused while the first is inside; when that has ended the model is free again."""
    model = tiny_llama()
    before, inside, go_on = everything(model), threading.Event(), threading.Event()
    results: list[list[int]] = []

    def on_tokens(row: int, new: list[int]) -> None:
        inside.set()
        go_on.wait(60)

    first = threading.Thread(target=lambda: results.append(tokens(model, plan=PLAN, on_tokens=on_tokens)))
    first.start()
    assert inside.wait(60)
    try:
        for call in (
            lambda: tokens(model),
            lambda: model(IDS),
            lambda: zigzag.attach(model, PLAN),
            lambda: zigzag.calibrate(model, method="lost_mass", sink=2, recent=5, prompts=PROMPTS),
        ):
            with pytest.raises(ModelError, match=r"in the middle of zigzag\.generate"):
                call()
        assert tokens(tiny_llama(), plan=PLAN) == wanted  # another model is nobody's business
    finally:
        go_on.set()
        first.join(60)
    assert results == [wanted]
    assert everything(model) == before
    assert tokens(model, plan=PLAN) == wanted


def test_several_threads_call_an_attached_model(wanted: list[int]) -> None:
    """transformers' own loop, each with a cache of its own."""
    model, start, found = zigzag.attach(tiny_llama(), PLAN), threading.Barrier(4), []

    def run() -> None:
        start.wait(60)
        found.extend(attached_tokens(model) for _ in range(3))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == [wanted] * 12


@pytest.mark.parametrize("is_attached", [False, True])
@pytest.mark.parametrize(
    "call",
    [
        lambda model: zigzag.generate(model, IDS, max_new_tokens=2),
        lambda model: model(IDS),
        lambda model: model.generate(IDS, max_new_tokens=2),
        lambda model: zigzag.attach(model, LayerPlan(("full",) * 3, 1, 2)),
        lambda model: zigzag.generate(model, IDS, drafter=model, max_new_tokens=2),
    ],
    ids=["generate", "forward", "transformers", "attach", "draft"],
)
def test_a_callback_that_calls_the_model(call: Callable[[Any], Any], is_attached: bool, wanted: list[int]) -> None:
    model = tiny_llama()
    if is_attached:
        zigzag.attach(model, PLAN)
    before, errors = everything(model), []

    def on_tokens(row: int, new: list[int]) -> None:
        with pytest.raises(ModelError, match=r"in the middle of zigzag\.generate") as caught:
            call(model)
        errors.append(caught.value)

    assert tokens(model, plan=PLAN, on_tokens=on_tokens) == wanted
    assert len(errors) == 8
    assert everything(model) == before


def test_detach_in_a_callback_is_refused(wanted: list[int]) -> None:
    model = zigzag.attach(tiny_llama(), PLAN)

    def on_tokens(row: int, new: list[int]) -> None:
        with pytest.raises(ModelError, match="in the middle"):
            zigzag.detach(model)

    assert tokens(model, on_tokens=on_tokens) == wanted
    assert attached_tokens(model) == wanted


def test_a_model_that_is_being_scored_is_refused() -> None:
    model = tiny_llama()
    from zigzag.running.masking import masked_heads

    with masked_heads(model, [[True, False]] * 3, sink=1, recent=2):
        with pytest.raises(ModelError, match="is being scored"):
            tokens(model)
        with pytest.raises(ModelError, match="is being scored"):
            zigzag.attach(model, PLAN)
    tokens(model)


class _Failing:
    """Fails in the n-th call, as a processor, a criterion, a callback or part of a drafter."""

    def __init__(self, after: int, error: type[BaseException]) -> None:
        self.left, self.error = after, error

    def __call__(self, *args: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise self.error("of the user's")
        return args[1] if len(args) == 2 and isinstance(args[1], torch.Tensor) else False


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["on_tokens", "logits_processor", "stopping_criteria", "drafter"])
@pytest.mark.parametrize("is_attached", [False, True])
def test_an_exception_of_the_users(
    where: str, error: type[BaseException], is_attached: bool, wanted: list[int]
) -> None:
    """The model is as it was, and so is the cache of an earlier call: the next call needs no prompt."""
    model = tiny_glm4_moe()
    if is_attached:
        zigzag.attach(model, PLAN)
    before = everything(model)
    first = zigzag.generate(model, IDS, plan=PLAN, temperature=0, max_new_tokens=2)
    plain = zigzag.generate(model, IDS, plan=PLAN, temperature=0, max_new_tokens=8).sequences
    failing: Any = _Failing(2, error)
    if where == "drafter":
        failing = LookupDrafter(3)
        failing.observe = _Failing(2, error)
    options = {where: failing if where in ("drafter", "on_tokens") else [failing]}
    with pytest.raises(error, match="of the user's"):
        zigzag.generate(
            model, first.sequences, plan=PLAN, temperature=0, max_new_tokens=8, cache=first.cache, **options
        )
    assert everything(model) == before
    assert first.cache.tokens == [first.sequences[0][:-1]]
    fed: list[int] = []
    more = zigzag.generate(
        model, first.sequences, plan=PLAN, temperature=0, max_new_tokens=6, cache=first.cache, on_prefill=fed.append
    )
    assert more.sequences == plain and not fed
    assert zigzag.generate(model, IDS, plan=PLAN, temperature=0, max_new_tokens=8).sequences == plain
    first.cache.reset()
    again = zigzag.generate(model, IDS, plan=PLAN, temperature=0, max_new_tokens=8, cache=first.cache)
    assert again.sequences == plain


# Adapters and handles


def lora(model: Any) -> Any:
    torch.manual_seed(3)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    with torch.no_grad():
        for weight in (w for w in adapted.parameters() if w.requires_grad):
            weight.normal_(std=0.3)
    return adapted.eval()


def test_wrapping_merging_and_unloading_in_any_order(wanted: list[int]) -> None:
    adapted = lora(tiny_llama())
    with_adapter = attached_tokens(zigzag.attach(adapted, PLAN))
    assert with_adapter != wanted
    zigzag.detach(adapted.base_model.model)  # another handle
    assert attached_tokens(adapted) != with_adapter
    assert tokens(adapted, plan=PLAN) == with_adapter

    model = zigzag.attach(tiny_llama(), PLAN)
    adapted = lora(model)  # wrapped while attached
    assert attached_tokens(adapted) == with_adapter
    with adapted.disable_adapter():
        assert attached_tokens(adapted) == wanted
    merged = adapted.merge_and_unload()
    assert attached_tokens(merged) == with_adapter
    zigzag.detach(adapted)
    assert everything(merged) == everything(tiny_llama())
    assert tokens(merged, plan=PLAN) == with_adapter

    adapted = lora(zigzag.attach(tiny_llama(), PLAN))
    assert attached_tokens(adapted.unload()) == wanted


def test_a_lora_model_drafted_by_its_own_base() -> None:
    """Base and adapted model are one: drafting by it would run the adapter too."""
    model = tiny_llama()
    adapted = lora(model)
    before = everything(model)
    with pytest.raises(ModelError, match=r"draft model shares its layers with the target.*second time"):
        tokens(adapted, drafter=model)
    assert everything(model) == before
    assert tokens(adapted, drafter=tiny_llama()) == tokens(adapted)


def test_prompt_learning_adapters() -> None:
    """Virtual tokens count as the prompt's own under `attach`; `generate` feeds tokens alone and says so."""
    prompt = peft.get_peft_model(
        tiny_llama(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    ).eval()
    with pytest.raises(ModelError, match="virtual tokens"):
        tokens(prompt)
    zigzag.attach(prompt, PLAN)
    assert prompt(input_ids=IDS).logits.shape[1] == 24
    prefix = peft.get_peft_model(
        tiny_llama(), peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    ).eval()
    zigzag.attach(prefix, PLAN)
    with pytest.raises(CacheError, match="filled without this plan"):
        prefix(input_ids=IDS)


def test_a_copy_is_a_model_of_its_own(wanted: list[int]) -> None:
    model = zigzag.attach(tiny_llama(), PLAN)
    other = copy.deepcopy(model)
    assert attached_tokens(other) == wanted
    zigzag.detach(other)
    assert everything(other) == everything(tiny_llama())
    assert attached_tokens(other) != wanted
    assert attached_tokens(model) == wanted


def test_saved_whole(wanted: list[int], tmp_path: Any) -> None:
    model = zigzag.attach(tiny_llama(), PLAN)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    assert attached_tokens(torch.load(stream, weights_only=False)) == wanted
    model.save_pretrained(tmp_path)
    assert "zigzag" not in (tmp_path / "config.json").read_text()


# Settings that others change


def test_another_attention_while_attached(wanted: list[int]) -> None:
    model = zigzag.attach(tiny_llama(), PLAN)
    model.set_attn_implementation("eager")
    for call in (lambda: model(IDS), lambda: attached_tokens(model)):
        with pytest.raises(ModelError, match=r"set to 'eager' while it runs a plan.*zigzag\.detach"):
            call()
    zigzag.detach(model)
    assert model.config._attn_implementation == "eager"  # what others have set stays
    assert attached_tokens(zigzag.attach(model, PLAN)) == wanted
    assert zigzag.detach(model).config._attn_implementation == "eager"


def test_the_text_part_alone_is_taken() -> None:
    """A vision-language model whose parts have attention implementations of their own."""
    text = {"num_hidden_layers": 4, "sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"] * 2}
    text |= {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "head_dim": 8}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Gemma3Config(
        text_config={**text, "num_key_value_heads": 2},
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config).eval()
    model.set_attn_implementation({"text_config": "sdpa", "vision_config": "eager"})
    before, plan = everything(model), LayerPlan(("streaming", "full"), 2, 5)
    zigzag.attach(model, plan)
    assert model.config.vision_config._attn_implementation == "eager"
    with pytest.raises(ModelError, match=r"attention mask.*got dict.*zigzag\.generate"):
        model(IDS)
    zigzag.detach(model)
    assert everything(model) == before
    assert len(tokens(model, plan=plan)) == 28
    assert everything(model) == before


def test_offloaded_by_accelerate(wanted: list[int]) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = tiny_llama()
    accelerate.cpu_offload(model, execution_device="cpu")
    assert model.device.type == "meta"
    assert tokens(model, plan=PLAN, drafter="lookup") == wanted
    assert attached_tokens(zigzag.attach(model, PLAN)) == wanted
    zigzag.detach(model)
    config = GenerationConfig(suppress_tokens=[wanted[-1]], encoder_no_repeat_ngram_size=2)
    options: dict[str, Any] = {"generation_config": config, "stopping_criteria": MaxLengthCriteria(IDS.shape[1] + 5)}
    assert tokens(model, **options) == tokens(
        tiny_llama(), **options
    )  # what they look at lies where the model computes
    with torch.device("meta"):
        empty = tiny_llama()
    with pytest.raises(ModelError, match="meta device"):
        tokens(empty)


@pytest.mark.parametrize("kind", ["nemotron", "stablelm"])
def test_models_that_do_not_pass_keywords_on(kind: str) -> None:
    """Their layers give the attention nothing of what the model was called with: the hook leaves it for the thread."""
    from written_out import written_out

    model = tiny(kind, layer_types=None, num_hidden_layers=3)
    with written_out(model, PLAN.full_heads(2), sink=2, recent=6), torch.inference_mode():
        logits = model(IDS, use_cache=False).logits
    zigzag.attach(model, PLAN)
    with torch.inference_mode():
        torch.testing.assert_close(model(IDS).logits, logits, rtol=1e-6, atol=1e-6)
        model(IDS[:, :3])
    zigzag.detach(model)
    assert not torch.allclose(model(IDS).logits, logits)


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("gemma2", {"layer_types": ["full_attention"] * 3}, "attn_logit_softcapping=50"),
        (
            "deepseek_v3",
            {"qk_rope_head_dim": 4, "q_lora_rank": 8, "kv_lora_rank": 8},
            "latent attention.*without a plan",
        ),
        ("gemma3_text", {"use_bidirectional_attention": True}, "both directions"),
        ("gemma4_text", {}, "layers of different heads"),
        ("falcon_h1", {}, "no layer with full attention \\(hybrid\\)"),
        ("llama", {"num_kv_shared_layers": 1}, "use the keys of others"),
        ("llama", {"kv_sharing_modes": ["own", "own", "reuse"]}, "use the keys of others"),
        ("mistral", {"sliding_window": 0}, "sliding_window=0"),
        ("gptj", {}, "num_key_value_heads"),
    ],
)
def test_models_that_cannot_run_plans_are_refused_by_attach(kind: str, options: dict[str, Any], reason: str) -> None:
    config = CONFIG_MAPPING[kind](num_hidden_layers=3, **options)

    class Model:
        def __init__(self) -> None:
            self.config = config

        def get_decoder(self) -> Any:
            return torch.nn.Module()

    with pytest.raises(ModelError, match=reason):
        zigzag.attach(Model(), PLAN)


def test_a_model_with_a_cache_of_its_own_kind_is_refused_by_attach() -> None:
    config = CONFIG_MAPPING["minimax"](**SIZES, num_hidden_layers=2, num_local_experts=2, num_experts_per_tok=1)
    with pytest.raises(ModelError, match="MiniMaxForCausalLM takes only a cache of its own kind"):
        zigzag.attach(AutoModelForCausalLM.from_config(config), LayerPlan(("full",), 1, 1))


def test_a_window_that_the_config_does_not_tell_is_refused() -> None:
    """Mistral's layers take their window from the config, whatever its layer_types say."""
    model = tiny("mistral", sliding_window=8, layer_types=["full_attention"] * 3, num_hidden_layers=3)
    zigzag.attach(model, PLAN)
    with pytest.raises(ModelError, match=r"sliding_window=8 \(its layer_types say another\)"):
        model(IDS)


def test_a_layer_without_a_number_is_refused() -> None:
    """An attention module that no plan could find would silently stay full."""
    model = tiny_llama()
    del model.model.layers[1].self_attn.layer_idx
    before = everything(model)
    with pytest.raises(ModelError, match="attention interface"):
        zigzag.attach(model, PLAN)
    assert everything(model) == before


def test_two_threads_that_detach() -> None:
    model = tiny_llama()
    before, start, errors = everything(model), threading.Barrier(4), []

    def run() -> None:
        start.wait(60)
        try:
            zigzag.detach(model)
        except Exception as error:
            errors.append(error)

    for _ in range(20):
        zigzag.attach(model, PLAN)
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert everything(model) == before
    assert errors == []


def test_output_attentions_are_refused() -> None:
    model = zigzag.attach(tiny_llama(), PLAN)
    with pytest.raises(ModelError, match="no attention weights"):
        model(IDS, output_attentions=True)


def test_what_a_tokenizer_gives_besides_passes() -> None:
    model = zigzag.attach(tiny_llama(), PLAN)
    given = model(IDS, attention_mask=torch.ones_like(IDS), token_type_ids=torch.zeros_like(IDS))
    torch.testing.assert_close(given.logits, model(IDS).logits)


# transformers' own ways of decoding


@pytest.mark.parametrize(
    "options",
    [
        {"assistant_early_exit": 2},
        {"prefill_chunk_size": 7},
        {"prompt_lookup_num_tokens": 3},
        {"assistant_model": "itself"},
        {"assistant_model": "a small one under a plan"},
    ],
    ids=str,
)
def test_transformers_assistants(options: dict[str, Any], wanted: list[int]) -> None:
    model = zigzag.attach(tiny_llama(), PLAN)
    small = zigzag.attach(tiny_llama(2, seed=3), LayerPlan(("streaming",) * 2, 2, 6))
    names = {"itself": model, "a small one under a plan": small}
    options = {name: names.get(value, value) if isinstance(value, str) else value for name, value in options.items()}
    assert model.generate(IDS, max_new_tokens=8, do_sample=False, **options)[0].tolist() == wanted


@pytest.mark.parametrize("kind", ["static", "offloaded"])
def test_other_caches_are_refused(kind: str) -> None:
    model = zigzag.attach(tiny_llama(), PLAN)
    with pytest.raises(CacheError, match="dynamic"):
        model.generate(IDS, max_new_tokens=4, do_sample=False, cache_implementation=kind)


# Caches


def test_a_forward_that_breaks_off_voids_the_cache() -> None:
    """Layers before the error have taken the tokens, those behind it have not."""
    model = zigzag.attach(tiny_llama(), PLAN)
    cache = DynamicCache(config=model.config)
    model(IDS, past_key_values=cache)

    def fail(*_: Any) -> None:
        raise MemoryError("none left")

    hook = model.model.layers[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        model(IDS[:, :1], past_key_values=cache)
    hook.remove()
    with pytest.raises(CacheError, match="different numbers of tokens"):
        model(IDS[:, :1], past_key_values=cache)
    cache.reset()
    model(IDS[:, :1], past_key_values=cache)


def test_a_crop_that_is_refused_half_way_voids_the_cache() -> None:
    model = zigzag.attach(tiny_llama(), LayerPlan(("full", "streaming", "full"), 2, 6), spare=2)
    cache = DynamicCache(config=model.config)
    model(IDS, past_key_values=cache)
    with pytest.raises(CacheError, match="spare"):
        cache.crop(-4)
    with pytest.raises(CacheError, match="different numbers of tokens"):
        model(IDS[:, :1], past_key_values=cache)


def test_the_cache_of_a_runner_is_its_own() -> None:
    result = zigzag.generate(tiny_llama(), IDS, temperature=0, max_new_tokens=2)
    for call, name in ((lambda c: c.reset(), "reset"), (lambda c: c.crop(-1), "take_back")):
        with pytest.raises(CacheError, match=name):
            call(result.cache.cache)
