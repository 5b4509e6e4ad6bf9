"""Models whose experts go through `apply_experts` give the logits that they gave before, and get their own back."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from glms import FIXED, one_thread, random_glm  # noqa: E402, F401
from models import random_ids, tiny_llama  # noqa: E402
from transformers.integrations.moe import use_experts_implementation  # noqa: E402

import zigzag  # noqa: E402
from zigzag import ModelError, fused_experts, ops  # noqa: E402
from zigzag.models.mtp_head import MtpHead  # noqa: E402
from zigzag.running import fused_experts as experts  # noqa: E402

FEW, PROMPT = torch.arange(8)[None], torch.arange(20)[None]


class Calls:
    """Counts the tokens of each call of `apply_experts`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens: list[int] = []
        right = ops.apply_experts

        def counting(hidden, *rest, **options):
            self.tokens.append(len(hidden))
            return right(hidden, *rest, **options)

        monkeypatch.setattr(ops, "apply_experts", counting)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The CPU stands for a GPU."""
    monkeypatch.setattr(experts, "DEVICES", ("cpu",))
    return Calls(monkeypatch)


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def worst(model, ids) -> float:
    """The largest difference that the experts make, over the largest logit."""
    before = logits(model, ids)
    with fused_experts(model):
        return float((logits(model, ids) - before).abs().max() / before.abs().max())


@pytest.mark.parametrize("stock", ["eager", "grouped_mm", "batched_mm"])
def test_same_logits(calls: Calls, stock: str) -> None:
    model = random_glm(FIXED)
    model.set_experts_implementation(stock)
    assert worst(model, FEW) < 1e-5
    assert calls.tokens == [8, 8]  # two layers with experts
    assert model.config._experts_implementation == stock


def test_same_logits_through_the_kernels(calls: Calls) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from zigzag.backends import triton as triton_ops

    if reason := triton_ops.unavailable():
        pytest.skip(reason)
    if torch.cuda.is_available():
        pytest.skip("the kernels are not interpreted here; the parity suite runs them with --device cuda")
    model = random_glm(FIXED)
    with zigzag.use_backend("triton"):
        assert worst(model, FEW) < 1e-5
        assert worst(model, FEW[:, :1]) < 1e-5
        assert worst(model, PROMPT) < 1e-5
    assert calls.tokens == [8, 8, 1, 1, 20, 20]


def test_wrong_experts_change_the_logits(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.apply_experts
    monkeypatch.setattr(ops, "apply_experts", lambda *arrays, **options: 1.001 * right(*arrays, **options))
    assert worst(random_glm(FIXED), FEW) > 1e-5


def test_generation_is_the_same(calls: Calls) -> None:
    """The prompt and the new tokens go through `apply_experts`."""
    model, ids = random_glm(FIXED), PROMPT
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    before = model.generate(ids, **options)
    with fused_experts(model):
        assert model.generate(ids, **options).tolist() == before.tolist()
    assert calls.tokens == [20] * 2 + [1] * 6


@pytest.mark.parametrize("inner", [12, 11])
def test_prompts_of_all_sizes(calls: Calls, inner: int) -> None:
    """transformers' `grouped_mm` refuses rows that do not begin at multiples of 16 bytes, as those of 11 numbers."""
    assert worst(random_glm(FIXED | {"moe_intermediate_size": inner}), PROMPT) < 1e-5
    assert calls.tokens == [20, 20]


def test_gradients_other_devices_and_autocast_go_to_transformers(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_glm(FIXED)
    with fused_experts(model):
        model(FEW).logits.sum().backward()
        assert model.model.layers[1].mlp.experts.down_proj.grad.abs().max() > 0
        with torch.no_grad():
            module = model.model.layers[1].mlp.experts
            half = torch.zeros(2, 16, dtype=torch.bfloat16)
            experts.experts_forward(module, half, torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3))
        model(PROMPT).logits.sum().backward()
        monkeypatch.setattr(experts, "DEVICES", ("cuda",))
        logits(model, FEW)
        logits(model, PROMPT)
    assert calls.tokens == []


@pytest.mark.parametrize("times", [1, 10])
def test_experts_of_another_process_add_nothing(calls: Calls, times: int) -> None:
    """Expert parallelism hands over the index `num_experts` with the weight 0; a few tokens, and many."""
    module = random_glm(FIXED).model.layers[1].mlp.experts
    ids = torch.tensor([[0, 16, 1], [16, 16, 16], [2, 3, 4]]).repeat(times, 1)
    hidden = torch.randn(3 * times, 16)
    with torch.no_grad():
        out = experts.experts_forward(module, hidden, ids, (ids < 16).float())
        module._is_expert_parallel = True
        module.config._experts_implementation = "grouped_mm"
        assert torch.allclose(out, module(hidden, ids, (ids < 16).float()), atol=1e-5)
    assert calls.tokens == [3 * times] and not out[1].any()


def test_mtp_head_is_switched_apart(calls: Calls) -> None:
    model = random_glm(FIXED)
    head = MtpHead(model)
    with fused_experts(head):
        assert head.block.mlp.experts.config._experts_implementation == experts.NAME
        assert model.config._experts_implementation == "eager"
    assert head.block.mlp.experts.config._experts_implementation == "eager"


def test_restored_after_an_error() -> None:
    model = random_glm(FIXED)
    with pytest.raises(KeyError), fused_experts(model):
        raise KeyError
    assert model.config._experts_implementation == "eager"


def test_models_without_experts_are_left_alone() -> None:
    model = tiny_llama(2)
    before = model.config._experts_implementation
    with fused_experts(model):
        assert model.config._experts_implementation == before
        logits(model, random_ids(1, 4))


def test_by_name(calls: Calls, tmp_path) -> None:
    """The name can be given to transformers as well, once zigzag.running.fused_experts is imported."""
    model = random_glm(FIXED)
    model.save_pretrained(tmp_path)
    read = type(model).from_pretrained(tmp_path, experts_implementation=experts.NAME)
    assert torch.allclose(logits(read, FEW), logits(model, FEW), atol=1e-4)
    assert calls.tokens == [8, 8]


class OwnGate:
    def _apply_gate(self, gate_up):
        return gate_up.chunk(2, dim=-1)[0]


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ({"is_transposed": True}, "is_transposed=True"),
        ({"has_bias": True, "is_concatenated": False}, "is_concatenated=False, has_bias=True"),
        ({"activation": "gelu"}, "activation GELUActivation"),
        ({"base": OwnGate}, "a gate function of its own"),
        ({"dtype": torch.float8_e4m3fn}, r"weights in torch\.float8_e4m3fn"),
    ],
)
def test_other_experts_are_refused(layout: dict, words: str) -> None:
    from transformers.activations import ACT2FN

    base = layout.pop("base", object)
    activation, dtype = ACT2FN[layout.pop("activation", "silu")], layout.pop("dtype", torch.float32)

    class Experts(torch.nn.Module, base):
        def __init__(self, config):
            super().__init__()
            self.act_fn = activation
            self.down_proj = torch.nn.Parameter(torch.zeros(2, 4, 3).to(dtype), requires_grad=False)

        def forward(self, hidden, *rest):
            return hidden

    config = random_glm(FIXED).config
    module = use_experts_implementation(Experts, **layout)(config)
    with pytest.raises(ModelError, match=f"Experts: experts with silu, .* got {words}; leave this model"):
        fused_experts(torch.nn.Sequential(module)).__enter__()
    assert config._experts_implementation == "eager"


def test_experts_of_another_build_stay_as_they_are() -> None:
    """gpt-oss has biases and an activation of its own, which is no module."""
    from windowed_models import gpt_oss

    model = gpt_oss()
    before = model.config._experts_implementation
    with pytest.raises(ModelError, match=r"has_bias=True.*activation NoneType"), fused_experts(model):
        pass
    assert model.config._experts_implementation == before
