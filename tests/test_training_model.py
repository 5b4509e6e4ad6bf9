"""The training forward against transformers and the reference; the optimizer, the balancing, the schedule."""

from functools import partial
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from glms import FIXED, glm_options, official, one_thread, random_glm, random_mtp  # noqa: E402, F401
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from trainings import small  # noqa: E402

from zigzag import ModelError  # noqa: E402
from zigzag.models.mtp_head import MtpHead  # noqa: E402
from zigzag.reference import glm as reference  # noqa: E402
from zigzag.training.balance import update_bias, violation  # noqa: E402
from zigzag.training.config import KINDS  # noqa: E402
from zigzag.training.model import TrainingModel, most, rotations, stacked_shapes  # noqa: E402
from zigzag.training.names import official as named  # noqa: E402
from zigzag.training.names import take  # noqa: E402
from zigzag.training.optimizer import UPDATE_RMS, Optimizer, is_muons, orthogonal  # noqa: E402
from zigzag.training.schedule import fitted, planned  # noqa: E402
from zigzag.training.tally import loss_weights, target_kinds  # noqa: E402

ONE_GROUP = {"n_group": 1, "topk_group": 1, "tie_word_embeddings": False}
LENGTH = 9
IDS = torch.randint(0, 24, (2, LENGTH + 1), generator=torch.Generator().manual_seed(0))


def trained(weights: dict, options: dict, **kinds: Any) -> TrainingModel:
    config = reference.GlmConfig.from_dict(random_glm(options).config.to_dict())
    return take(TrainingModel(config, **kinds), weights)


def outputs(model: TrainingModel, ids: Any = IDS) -> tuple[Any, list[Any]]:
    """What a forward gives, and the logits of the model and of the MTP layer."""
    states, judged = [], model._judged

    def noting(*args: Any) -> Any:
        made = judged(*args)
        states.append(made[0])
        return made

    model._judged = noting
    output = model(ids, rotations(model.config, model.config.rope_theta, ids.shape[1] - 1))
    model._judged = judged
    return output, [one @ model.head.T for one in states]


def close(one: Any, other: Any) -> bool:
    """Within float32's rounding of the largest number, through a few layers."""
    one, other = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    return bool(np.abs(one - other).max() < 2e-5 * max(1.0, np.abs(other).max()))


@settings(max_examples=12)
@given(glm_options().map(lambda drawn: drawn | ONE_GROUP))
def test_logits_are_the_references_and_transformers(options: dict) -> None:
    theirs = random_glm(options)
    weights = official(theirs, random_mtp(theirs))
    model = trained(weights, options)
    with torch.no_grad():
        _, (logits, mtp_logits) = outputs(model)
        hf = theirs(IDS[:, :-1], output_hidden_states=True)
        prefix = f"model.layers.{options['num_hidden_layers']}."
        head = MtpHead(theirs).load({n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)})
        states, positions = hf.hidden_states[-1], torch.arange(LENGTH)[None]
        mask = torch.full((LENGTH, LENGTH), -torch.inf).triu(1)[None, None]
        hf_mtp = head(IDS[:, 1:], hidden=states, position_ids=positions, attention_mask=mask).logits
    true = reference.forward(model.config, weights, IDS[:, :-1].numpy())
    true_mtp = reference.mtp_forward(model.config, weights, true.hidden_states, IDS[:, 1:].numpy())
    assert close(logits, true.logits) and close(logits, hf.logits)
    assert close(mtp_logits, true_mtp.logits) and close(mtp_logits, hf_mtp)


FIX = FIXED | ONE_GROUP


def test_drafts_in_a_row_are_the_references() -> None:
    """From its second pass on the MTP layer reads its own normed states, and the tokens one further."""
    theirs = random_glm(FIX)
    weights = official(theirs, random_mtp(theirs))
    model = trained(weights, FIX, depth=3)
    with torch.no_grad():
        output, (_, *drafted) = outputs(model)
    states = reference.forward(model.config, weights, IDS[:, :-1].numpy()).hidden_states
    for after, logits in enumerate(drafted, start=1):
        known = torch.nn.functional.pad(IDS[:, after:], (0, after - 1)).numpy()
        true = reference.mtp_forward(model.config, weights, states, known)
        states, real = true.hidden_states, LENGTH - after
        assert close(logits[:, :real], true.logits[:, :real])
        targets = IDS[:, after + 1 :]
        expected = torch.nn.functional.cross_entropy(logits[:, :real].transpose(1, 2), targets, reduction="none")
        assert close(output.losses[after][:, :real], expected)
    assert not close(drafted[0], drafted[1])
    assert output.load[-1].sum() == 3 * IDS[:, 1:].numel() * FIX["num_experts_per_tok"]


def test_kinds_of_the_targets() -> None:
    kinds = torch.tensor([[0, 1, 2, 3]])
    end = len(KINDS)
    assert target_kinds(kinds, 2).tolist() == [[[1, 2, 3]], [[2, 3, end]], [[3, end, end]]]
    assert loss_weights({"text": 0.5}).tolist() == [1.0, 0.5, *[1.0] * (end - 2), 0.0]


def test_comparison_of_logits_can_fail() -> None:
    theirs = random_glm(FIX)
    weights = official(theirs, random_mtp(theirs))
    with torch.no_grad():
        _, (logits, mtp_logits) = outputs(trained(weights, FIX))
        for name in ("model.layers.1.mlp.gate.e_score_correction_bias", "model.layers.2.self_attn.k_norm.weight"):
            other = trained(weights | {name: weights[name].flip(0)}, FIX)
            assert not close(outputs(other)[1][0], logits)
        other = trained(weights | {"model.layers.3.hnorm.weight": weights["model.layers.3.hnorm.weight"].flip(0)}, FIX)
        assert close(outputs(other)[1][0], logits) and not close(outputs(other)[1][1], mtp_logits)


def test_losses_load_and_right_are_those_of_the_logits() -> None:
    theirs = random_glm(FIX)
    model = trained(official(theirs, random_mtp(theirs)), FIX)
    with torch.no_grad():
        output, logits = outputs(model)
    for which, targets in enumerate((IDS[:, 1:], IDS[:, 2:])):
        shown = logits[which][:, : targets.shape[1]]
        expected = torch.nn.functional.cross_entropy(shown.transpose(1, 2), targets, reduction="none")
        assert close(output.losses[which][:, : targets.shape[1]], expected)
        assert torch.equal(output.right[which][:, : targets.shape[1]], shown.argmax(-1) == targets)
    true = reference.forward(model.config, official(theirs, random_mtp(theirs)), IDS[:, :-1].numpy())
    counts = [np.bincount(true.routing[layer].expert_ids.ravel(), minlength=16) for layer in (1, 2)]
    assert output.load[:2].tolist() == np.array(counts).tolist()


def test_gradients_are_transformers() -> None:
    theirs = random_glm(FIX)
    model = trained(official(theirs, random_mtp(theirs)), FIX)
    logits = theirs(IDS[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits.transpose(1, 2), IDS[:, 1:]).backward()
    outputs(model)[0].losses[0].mean().backward()
    block, width = theirs.model.layers[2], model.config.moe_intermediate_size
    pairs = {
        "q": (model.q.grad[2], block.self_attn.q_proj.weight.grad),
        "k_norm": (model.k_norm.grad[2], block.self_attn.k_norm.weight.grad),
        "router": (model.router.grad[1], block.mlp.gate.weight.grad),
        "gate": (model.gate.grad[1], block.mlp.experts.gate_up_proj.grad[:, :width]),
        "up": (model.up.grad[1], block.mlp.experts.gate_up_proj.grad[:, width:]),
        "down": (model.down.grad[1], block.mlp.experts.down_proj.grad),
        "embed": (model.embed.grad, theirs.model.embed_tokens.weight.grad),
    }
    for name, (ours, true) in pairs.items():
        scale = float(true.abs().max())
        assert scale > 0 and close(ours / scale, true / scale), name


def test_bfloat16_is_near_float32() -> None:
    """8 bits of a number and routers that may choose others: near, but not equal."""
    config = reference.GlmConfig.from_dict({**small().glm, "vocab_size": 24, "rope_theta": 1e4})
    exact, rounded = (TrainingModel(config, dtype=t).initialise(0) for t in (torch.float32, torch.bfloat16))
    one, other = outputs(exact)[0], outputs(rounded)[0]
    other.losses.mean().backward()
    assert 0 < float((one.losses - other.losses).detach().abs().max()) < 0.1
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in rounded.parameters())


def test_layers_share_one_compiled_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """No part falls back to Python, and a layer more needs no program more."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", partial(compiled, backend="eager", fullgraph=True))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    theirs = random_glm(FIX)
    weights = official(theirs, random_mtp(theirs))
    with torch.no_grad():
        made, plain = (outputs(trained(weights, FIX, compiled=c))[0] for c in (True, False))
    assert close(made.losses, plain.losses)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4  # dense, sparse, joined, judged


def test_weights_under_official_names_come_back() -> None:
    theirs = random_glm(FIX)
    weights = official(theirs, random_mtp(theirs))
    back = named(trained(weights, FIX), torch.float32)
    assert back.keys() == weights.keys() and all(torch.equal(back[name], weights[name]) for name in back)
    half = named(trained(weights, FIX), torch.bfloat16)
    kept = {name for name, tensor in half.items() if tensor.dtype == torch.float32}
    assert kept == {name for name in half if name.endswith("e_score_correction_bias")} != set()


def test_other_architectures_are_refused() -> None:
    for wrong in ({"n_group": 2}, {"tie_word_embeddings": True}, {"num_nextn_predict_layers": 2}):
        config = reference.GlmConfig.from_dict({**small().glm, "vocab_size": 24, "rope_theta": 1e4, **wrong})
        with pytest.raises(ModelError, match=f"TrainingModel: {next(iter(wrong))} must be"):
            TrainingModel(config)


@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_most_chooses_the_largest(count: int, seed: int) -> None:
    """Also among equal scores: exactly `count`, and none left out is larger than one chosen."""
    scores = torch.randint(0, 5, (7, 6), generator=torch.Generator().manual_seed(seed)).float()
    chosen = most(scores, count).bool()
    assert chosen.sum(-1).tolist() == [count] * 7
    for row, kept in zip(scores, chosen, strict=True):
        assert row[kept].sort().values.tolist() == row.topk(count).values.sort().values.tolist()


def spread(matrices: Any) -> tuple[float, float]:
    values = torch.linalg.svdvals(matrices)
    return float(values.min()), float(values.max())


@given(st.integers(1, 3), st.integers(2, 12), st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_orthogonal(stack: int, rows: int, columns: int, seed: int) -> None:
    """From any singular values in [0.2, 1] of the largest: all near 1, the singular vectors kept."""
    generator = torch.Generator().manual_seed(seed)
    u, _, vh = torch.linalg.svd(torch.randn(stack, rows, columns, generator=generator), full_matrices=False)
    values = 0.2 + 0.8 * torch.rand(stack, 1, u.shape[-1], generator=generator)
    given = u * values @ vh
    least, largest = spread(made := orthogonal(given))
    assert least > 0.6 and largest < 1.3
    inner = u.mT @ made @ vh.mT  # diagonal where the singular vectors are the same
    assert float((inner - torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1))).abs().max()) < 1e-3
    torch.testing.assert_close(orthogonal(given[:1]), made[:1], rtol=1e-4, atol=1e-5)


def test_check_of_orthogonality_can_fail() -> None:
    least, largest = spread(torch.tensor([[[3.0, 0.0], [0.0, 0.1]]]))
    assert least < 0.6 and largest > 1.3


def weights(seed: int = 0) -> dict[str, torch.nn.Parameter]:
    config = reference.GlmConfig.from_dict({**small().glm, "vocab_size": 24, "rope_theta": 1e4})
    return dict(TrainingModel(config).initialise(seed).named_parameters())


def gradients(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(weight.shape, generator=generator) for name, weight in weights().items()}


def stepped(own: dict[str, Any], optimizer: Optimizer, seeds: list[int], rate: float = 0.01) -> None:
    for seed in seeds:
        for name, gradient in gradients(seed).items():
            own[name].grad = gradient
        optimizer.step(rate)


def test_who_takes_what() -> None:
    muons = {name for name in weights() if is_muons(name)}
    assert muons == set(
        "q k v o gate up down shared_gate shared_up shared_down dense_gate dense_up dense_down eh_proj".split()
    )
    assert all(weight.dim() >= 2 for name, weight in weights().items() if name in muons)


def test_muon_moves_every_matrix_by_the_same_size() -> None:
    own = weights()
    before = {name: weight.detach().clone() for name, weight in own.items()}
    stepped(own, Optimizer(own.items(), momentum=0.95, weight_decay=0.0), [1], rate=0.5)
    for name, weight in own.items():
        if is_muons(name):
            size = (weight.detach() - before[name]).square().mean(dim=(-2, -1)).sqrt() / 0.5
            assert float(size.min()) > 0.6 * UPDATE_RMS and float(size.max()) < 1.3 * UPDATE_RMS, name


def test_adam_is_torchs() -> None:
    own, theirs = weights(), weights()
    optimizer = Optimizer(own.items(), momentum=0.95, weight_decay=0.1)
    groups = [
        {
            "params": [theirs[name] for name in optimizer.adam if (name in ("embed", "head", "router")) == decayed],
            "weight_decay": 0.1 * decayed,
        }
        for decayed in (True, False)
    ]
    adam = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    for seed in range(3):
        stepped(own, optimizer, [seed])
        for name, gradient in gradients(seed).items():
            theirs[name].grad = gradient
        adam.step()
    for name in optimizer.adam:
        torch.testing.assert_close(own[name], theirs[name], rtol=1e-5, atol=1e-6)
    assert optimizer.adam.keys() == {name for name in own if not is_muons(name)}


def test_optimizer_goes_on_from_its_state() -> None:
    options = {"momentum": 0.95, "weight_decay": 0.1}
    whole, first = weights(), weights()
    stepped(whole, Optimizer(whole.items(), **options), [0, 1, 2, 3])
    broken = Optimizer(first.items(), **options)
    stepped(first, broken, [0, 1])
    second = Optimizer(first.items(), **options)
    second.load(broken.state(), 2)
    stepped(first, second, [2, 3])
    assert all(torch.equal(whole[name], first[name]) for name in whole)


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(8, 2), (16, 4), (6, 1)]))
def test_bias_moves_load_toward_equal(seed: int, sizes: tuple[int, int]) -> None:
    """Tokens that all prefer the same experts are spread; without the update they stay where they are."""
    experts, top_k = sizes
    generator = torch.Generator().manual_seed(seed)
    scores = (torch.randn(512, experts, generator=generator) + torch.linspace(-2, 2, experts)).sigmoid()

    def after(rate: float) -> float:
        bias = torch.zeros(1, experts)
        for _ in range(400):
            update_bias(bias, most(scores + bias, top_k).sum(0, keepdim=True), rate)
        return float(violation(most(scores + bias, top_k).sum(0, keepdim=True)))

    assert after(0.0) > 0.8 and after(0.005) < 0.25


def test_schedule() -> None:
    config = small()
    plan = planned(config)
    assert plan.total == 24 and [plan.stage_of(i)[0].name for i in (0, 15, 16, 23)] == ["short"] * 2 + ["long"] * 2
    done = [plan.stage_of(i)[1] for i in range(24)]
    assert done[0] == 0 and done[16] == pytest.approx(0.6) and done == sorted(done) and done[-1] < 1
    rates = [plan.learning_rate(i) for i in range(24)]
    assert max(rates) <= config.learning_rate and rates[0] < rates[1] and rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] < 0.15 * config.learning_rate
    with pytest.raises(IndexError):
        plan.stage_of(24)
    assert fitted(config, 100.0, [0.5, 2.0]).steps == (120, 20)
    assert fitted(config, 0.0, [0.5, 2.0]).steps == (1, 1)


def test_shipped_configuration_is_what_the_issue_asks_for() -> None:
    from math import prod

    from zigzag.training.config import named as shipped
    from zigzag.training.config import read_config

    config = read_config(shipped("tiny-glm"))
    sizes = reference.GlmConfig.from_dict({**config.glm, "vocab_size": config.vocabulary, "rope_theta": 1e5})
    count = sum(map(prod, stacked_shapes(sizes).values()))
    assert 3e6 <= count <= 4.9e6  # at 2 bytes each a file of at most 10 MB with its header
    assert sizes.num_hidden_layers >= 12 and sizes.n_routed_experts >= 16 and config.vocabulary <= 4096
    assert max(stage.length for stage in config.stages) == config.glm["max_position_embeddings"] == 8192
    assert config.stages[-1].rope_theta > config.stages[0].rope_theta
    assert (config.stages[0].mtp_weight, config.stages[-1].mtp_weight) == (0.3, 0.1)
