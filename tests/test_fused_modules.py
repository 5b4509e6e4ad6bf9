"""Modules as few kernels: replaced where they are what they look like, put back, and left alone elsewhere."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import SIZES, random_ids, tiny_glm4_moe, tiny_llama
from torch import nn
from transformers import MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from zigzag import LayerPlan, use_backend
from zigzag.caches.fixed import FixedLayer
from zigzag.running.fixed import FixedStore
from zigzag.running.fused_checks import are_few, is_close, is_plain, kernels_serve, kernels_take
from zigzag.running.fused_modules import MANY, fused_modules
from zigzag.running.fused_modules import _same as same_results
from zigzag.running.fused_modules import _same_of as same_of
from zigzag.running.host import Host
from zigzag.running.runner import Runner


def tiny_qwen3(num_layers: int = 3) -> Any:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**{**SIZES, "num_hidden_layers": num_layers})).eval()


def tiny_mistral(num_layers: int = 3, window: int | None = None) -> Any:
    torch.manual_seed(0)
    config = MistralConfig(**{**SIZES, "num_hidden_layers": num_layers, "sliding_window": window})
    return MistralForCausalLM(config).eval()


def plain_glm(num_layers: int = 3) -> Any:
    return tiny_glm4_moe(num_layers, use_qk_norm=False)


MODELS = {"llama": tiny_llama, "glm": plain_glm, "glm-qk-norm": tiny_glm4_moe, "qwen3": tiny_qwen3}


@contextmanager
def with_kernels(model: Any, most: int = 20) -> Iterator[int]:
    """As on a GPU: Triton is chosen when modules are replaced; everything else runs on torch.

    most: rows to compare a router with, of which the interpreter runs a program each; its few are at most 16
    """

    def compared(module: Any, made: Any, rows: int) -> bool:
        return same_of(module, made, min(rows, most) if hasattr(module, "top_k") else rows)

    with ExitStack() as stack:
        with use_backend("triton"), pytest.MonkeyPatch.context() as patch:
            patch.setattr("zigzag.running.fused_modules._same_of", compared)
            count = stack.enter_context(fused_modules(model))
        yield count


@pytest.mark.parametrize(("make", "count"), [(tiny_llama, 7), (tiny_glm4_moe, 15)])
def test_logits_stay(make, count: int) -> None:
    """Three layers: two norms each and the last one; GLM's have two more for queries and keys, and two routers."""
    model, ids = make(3), random_ids(2, 9)
    with torch.inference_mode():
        before = model(ids).logits
        with fused_modules(model) as replaced:
            assert replaced == count
            inside = model(ids).logits
        assert not any("forward" in vars(module) for module in model.modules())
        assert torch.equal(model(ids).logits, before)
    torch.testing.assert_close(inside, before, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "count"), [(tiny_llama, 11), (plain_glm, 13), (tiny_glm4_moe, 17), (tiny_qwen3, 15), (tiny_mistral, 11)]
)
def test_logits_stay_with_kernels(make, count: int, launched: list[str]) -> None:
    """Of each of two layers the attention and the layer itself too; all run, once a layer."""
    model = make(2)
    for tokens, projected, mlp in ((9, [], []), (8, ["several"], ["swiglu", "several"])):  # of two rows
        ids = random_ids(2, tokens)
        with torch.inference_mode():
            before = model(ids).logits
            with with_kernels(model) as replaced:
                assert replaced == count
                launched.clear()
                inside = model(ids).logits
            layers = [["rms_norm", *projected, "rotate", "add_rms_norm"] for _ in range(2)]
            for layer, module in zip(layers, model.model.layers, strict=True):
                layer += [*projected * hasattr(module.mlp, "gate"), *mlp]  # a router's product
            assert launched == [*(name for layer in layers for name in layer), "rms_norm"]
            assert not any("forward" in vars(module) for module in model.modules())
            assert torch.equal(model(ids).logits, before)
        torch.testing.assert_close(inside, before, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "count"),
    [(lambda: tiny_llama(2).double(), 0), (lambda: tiny_mistral(2, window=6), 9)],
    ids=["float64", "a window that ours does not pass on"],
)
def test_what_the_kernels_do_not_serve_is_left_alone(make, count: int) -> None:
    """float64; Mistral's attention with a window, of which the layers are replaced. In float64 not even norms are."""
    model = make()
    with with_kernels(model) as replaced:
        assert replaced == count
        assert not any("forward" in vars(layer.self_attn) for layer in model.model.layers)


def story(model: Any, plan: LayerPlan | None) -> list[torch.Tensor]:
    """Logits of a ragged prompt, steps, what is taken back, a padded chunk beyond a ring's room, rows that left."""
    with Host(model) as host, torch.inference_mode():
        runner = Runner(host, FixedStore(plan, host.layers, host.device, spare=2, capacity=12, graphs=False))
        texts = [random_ids(1, n, seed=n)[0].tolist() for n in (9, 4)]
        logits = [runner.sync(texts).logits[:, 0]]
        for new in ([[5, 6], [7, 8]], [[9], [3]]):
            logits.append(runner.feed(torch.tensor(new)).logits)
            runner.keep([range(len(new[0]))] * 2, new)
        runner.take_back([1, 1])
        for lengths in ((1, 2), (6, 3)):
            texts = [[*row, *range(1, n + 1)] for row, n in zip(runner.tokens, lengths, strict=True)]
            logits.append(runner.sync(texts).logits[:, 0])
        runner.select([1])
        logits.append(runner.feed(torch.tensor([[4]])).logits)
    return [one.clone() for one in logits]


def differ(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return any((a - b).abs().max() > 1e-4 for a, b in zip(one, other, strict=True))


PLANS = {
    "full": None,
    "mixed": LayerPlan(("full", "streaming"), sink=2, recent=3),
    "streaming": LayerPlan(("streaming", "streaming"), sink=1, recent=2),
}


@pytest.mark.parametrize(
    ("name", "plan"), [*((name, "mixed") for name in MODELS), ("glm-qk-norm", "full"), ("glm", "streaming")]
)
def test_a_runner_at_fixed_addresses(name: str, plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is written by the kernel, but for chunks that still attend to what they overwrite."""
    model, updated = MODELS[name](2), []
    plain = story(model, PLANS[plan])
    update = FixedLayer.update

    def noting(self: FixedLayer, *given: Any) -> Any:
        updated.append(self.slots.chunk)
        return update(self, *given)

    monkeypatch.setattr(FixedLayer, "update", noting)
    with with_kernels(model):
        fused = story(model, PLANS[plan])
    assert not differ(plain, fused)
    rings = 0 if PLANS[plan] is None else PLANS[plan].kinds.count("streaming")
    assert updated == [True] * rings


def test_a_cache_written_elsewhere_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain_glm(2)
    plain, buffers = story(model, PLANS["mixed"]), FixedLayer.buffers

    def shifted(self: FixedLayer, *given: Any) -> Any:
        keys, values, where = buffers(self, *given)
        return keys, values, (where + 1) % keys.shape[2]

    monkeypatch.setattr(FixedLayer, "buffers", shifted)
    empty = torch.Tensor.new_zeros  # what is not written is no number that overflows
    monkeypatch.setattr(
        FixedLayer, "_buffer", lambda self, x, rows: empty(x, rows, x.shape[1], self.size + 1, x.shape[3])
    )
    with with_kernels(model):
        assert differ(plain, story(model, PLANS["mixed"]))


@pytest.mark.parametrize("given", ["rows", "columns"])
def test_other_caches_keep_their_update(given: str) -> None:
    """transformers' own, continued; left padding too."""
    model, ids = tiny_glm4_moe(2), random_ids(2, 12)
    mask = torch.ones_like(ids)
    if given == "columns":
        mask[1, :4] = 0
    with torch.inference_mode():
        whole = model(ids, attention_mask=mask).logits[:, 8:]
        with with_kernels(model):
            cache = model(ids[:, :8], attention_mask=mask[:, :8], use_cache=True).past_key_values
            inside = model(ids[:, 8:], attention_mask=mask, past_key_values=cache).logits
    torch.testing.assert_close(inside, whole, rtol=0, atol=1e-4)


def test_a_router_of_few_tokens_converts_no_weight(launched: list[str]) -> None:
    """Its logits are products in float32 of what is stored; of more tokens, as transformers computes them."""
    router = tiny_glm4_moe(2).model.layers[1].mlp.gate.half()
    router.e_score_correction_bias = router.e_score_correction_bias.float()
    with with_kernels(router, most=MANY) as replaced, torch.no_grad():
        assert replaced == 1
        for tokens, names in ((1, ["several"]), (16, ["several"]), (17, [])):
            launched.clear()
            states = torch.randn(1, tokens, 32).half()
            (logits, weights, ids), theirs = router(states), type(router).forward(router, states)
            assert launched == names and logits.dtype == weights.dtype == torch.float32
            torch.testing.assert_close(logits, theirs[0], rtol=0, atol=1e-5)
            assert torch.equal(ids.sort().values, theirs[2].sort().values)
            torch.testing.assert_close(weights.sort().values, theirs[1].sort().values, rtol=0, atol=1e-5)
        launched.clear()
        with torch.enable_grad():
            router(states[:, :1])[0].sum().backward()
        router(states[:, :1].float())
        router.weight = nn.Parameter(router.weight.T.contiguous().T)
        router(states[:, :1])
        assert launched == [] and router.weight.shape == (4, 32)


def test_norms_of_few_rows_are_a_kernel(launched: list[str]) -> None:
    """Those of more are torch's, and so are wider ones and where gradients may be wanted."""
    from zigzag.backends.triton.norms import FEW, WIDEST

    norm, wide = LlamaRMSNorm(8), LlamaRMSNorm(WIDEST + 1)
    with with_kernels(nn.ModuleList([norm, wide])) as replaced, torch.no_grad():
        assert replaced == 2
        for rows, names in ((FEW, ["rms_norm"]), (FEW + 1, [])):
            launched.clear()
            states = torch.randn(2, rows, 8)[:1]
            torch.testing.assert_close(norm(states), LlamaRMSNorm.forward(norm, states))
            assert launched == names
        wide(torch.ones(1, WIDEST + 1))
        with torch.enable_grad():
            norm(states[:, :1]).sum().backward()
        with pytest.warns(UserWarning, match="Mismatch dtype"):  # by torch
            norm(states[:, :1].half())
        assert launched == [] and norm.weight.grad is not None


def test_few_and_many_rows_are_compared() -> None:
    """A replacement that is right for few or for many alone is none."""
    from zigzag.backends.triton import norms

    assert MANY > norms.FEW
    norm = LlamaRMSNorm(8)
    given = SimpleNamespace(weight=norm.weight, forward=norm.forward)
    assert same_results(given, norm.forward)
    assert not same_results(given, lambda x: norm.forward(x) * (1.001 if len(x) == MANY else 1))
    assert not same_results(given, lambda x: norm.forward(x) * (1.001 if len(x) < MANY else 1))


class OtherRMSNorm(nn.Module):
    """Looks like a norm, but scales by 1 + weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (1 + self.weight) * x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.variance_epsilon)


def test_another_norm_is_left_alone() -> None:
    with fused_modules(nn.Sequential(OtherRMSNorm())) as replaced:
        assert replaced == 0


def test_what_only_bears_the_name_is_left_alone() -> None:
    """Without what such a module has."""
    for name in ("LlamaAttention", "LlamaDecoderLayer", "LlamaMLP", "Glm4MoeMoE", "OwnTopkRouter"):
        module = type(name, (nn.Module,), {"e_score_correction_bias": None})()
        with with_kernels(nn.Sequential(module)) as replaced:
            assert replaced == 0


@pytest.mark.parametrize(("within", "count"), [(fused_modules, 10), (with_kernels, 17)])
def test_groups_and_errors_leave_nothing_behind(within, count: int) -> None:
    model = tiny_glm4_moe(2, n_group=2, topk_group=1)
    with pytest.raises(RuntimeError, match="on purpose"), within(model) as replaced:
        assert replaced == count
        raise RuntimeError("on purpose")
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("within", [fused_modules, with_kernels])
def test_weights_are_read_in_every_call(within) -> None:
    """A copy made at the begin would be freed at the end, under the CUDA graphs that still read it."""
    model, ids = tiny_glm4_moe(2), random_ids(1, 5)
    with torch.inference_mode(), within(model):
        before = model(ids).logits
        for name, weight in model.named_parameters():
            if "norm" in name or "gate.weight" in name or "_proj" in name:
                weight.mul_(-1.5)
        changed = model(ids).logits
    with torch.inference_mode():
        torch.testing.assert_close(changed, model(ids).logits, rtol=0, atol=1e-4)
    assert not torch.allclose(before, changed)


def test_hooks_see_no_forward_that_is_none() -> None:
    """The comparison runs without them; afterwards each is called as ever."""
    model, called = tiny_glm4_moe(2), []
    layer = model.model.layers[0]
    watched = (layer, layer.self_attn, layer.self_attn.q_proj, layer.input_layernorm, layer.mlp)
    for module in watched:
        module.register_forward_hook(lambda module, *_: called.append(module))
    with torch.inference_mode(), with_kernels(model) as replaced:
        assert replaced == 17 and called == []
        model(random_ids(1, 4))
    assert len(called) == len(watched) and {id(module) for module in called} == {id(module) for module in watched}


@pytest.mark.parametrize("add", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hooked_norm_is_called(add: str) -> None:
    """Norms that kernels would read past their modules keep them as long as somebody listens."""
    model, called = tiny_glm4_moe(1), []
    layer = model.model.layers[0]
    watched = (layer.self_attn.q_norm, layer.post_attention_layernorm)
    for module in watched:
        getattr(module, add)(lambda module, *_: called.append(module))
    with torch.inference_mode(), with_kernels(model) as replaced:
        assert replaced == 6  # the norms themselves and the MLP
        model(random_ids(1, 4))
    assert [id(module) for module in called] == [id(module) for module in watched]


def test_a_forward_of_somebody_elses_stays() -> None:
    model = tiny_llama(1)
    layer = model.model.layers[0]
    layer.post_attention_layernorm.forward = type(layer.post_attention_layernorm).forward.__get__(
        layer.post_attention_layernorm
    )
    layer.self_attn.forward = type(layer.self_attn).forward.__get__(layer.self_attn)
    own = layer.self_attn.forward
    with with_kernels(model) as replaced:
        assert replaced == 3 and layer.self_attn.forward is own  # the two other norms and the MLP
    assert layer.self_attn.forward is own


def test_who_serves() -> None:
    weight = torch.ones(2)
    assert not kernels_serve(weight)
    for name, serves in (("triton", True), ("torch", False), ("numpy", False)):
        with use_backend(name):
            assert kernels_serve(weight) == serves
    with use_backend("triton"):
        assert kernels_serve(weight.bfloat16()) and not kernels_serve(weight.double())


def test_what_kernels_take() -> None:
    hidden = torch.ones(2)
    with torch.no_grad():
        assert kernels_take(hidden) and kernels_take(hidden, hidden, hidden)
        for other in (hidden.half(), hidden.to("meta")):
            assert not kernels_take(hidden, hidden, other)
        with torch.autocast("cpu", torch.bfloat16):
            assert not kernels_take(hidden)
    assert not kernels_take(hidden), "gradients may be wanted"


def test_few_are_what_a_tile_takes() -> None:
    assert are_few(torch.zeros(2, 8, 3)) and not are_few(torch.zeros(17, 3))


class OwnTensor(torch.Tensor):
    """As quantised weights and those spread over processes."""


def quantised() -> nn.Linear:
    made = nn.Linear(4, 3)
    made.weight = nn.Parameter(made.weight.detach().as_subclass(OwnTensor))
    return made


def with_hook(add: str) -> nn.Linear:
    made = nn.Linear(4, 3)
    getattr(made, add)(lambda *_: None)
    return made


def offloaded() -> nn.Linear:
    made = nn.Linear(4, 3)
    made.forward = made.forward
    return made


def transposed() -> nn.Linear:
    made = nn.Linear(4, 3)
    made.weight = nn.Parameter(torch.randn(4, 3).T)
    return made


@pytest.mark.parametrize(
    "make",
    [
        quantised,
        lambda: with_hook("register_forward_hook"),
        lambda: with_hook("register_forward_pre_hook"),
        offloaded,
        transposed,
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
        lambda: nn.Linear(4, 3).half(),
        lambda: nn.Identity(),
    ],
    ids="quantised hook before offloaded transposed computed dtype other".split(),
)
def test_what_is_no_plain_linear_layer(make) -> None:
    assert is_plain(nn.Linear(4, 3), torch.float32) and is_plain(nn.Linear(4, 3, bias=False), torch.float32)
    assert not is_plain(make(), torch.float32)


def test_close_is_a_few_roundings() -> None:
    theirs = torch.tensor([1.0, -64.0])
    for dtype in (torch.float32, torch.bfloat16):
        step = 64 * torch.finfo(dtype).eps
        assert is_close(theirs + 4 * step, theirs, dtype) and not is_close(theirs + 5 * step, theirs, dtype)
    step = 64 * torch.finfo(torch.float32).eps
    assert is_close(theirs + 40 * step, theirs, torch.float32, terms=100)
    assert not is_close(theirs + 41 * step, theirs, torch.float32, terms=100)
    assert not is_close(theirs + 5 * 2.0**-1, theirs, torch.bfloat16, terms=100)
    assert not is_close(theirs[:1], theirs, torch.float32)
    assert not is_close(theirs * torch.nan, theirs, torch.float32)


def test_gradients_are_those_of_the_model() -> None:
    """A forward that may want them goes the model's own way, under replacement too."""
    ids, found = random_ids(1, 6), []
    for within in (fused_modules, with_kernels):
        model = tiny_glm4_moe(2)
        with within(model):
            model(ids, labels=ids).loss.backward()
        found.append([weight.grad for name, weight in model.named_parameters() if "q_" in name or "layernorm" in name])
    assert len(found[0]) == 8 and all(grad is not None and grad.any() for grad in found[0])
    for plain, fused in zip(*found, strict=True):
        assert torch.equal(plain, fused)
