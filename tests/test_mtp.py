"""The MTP layer: its arithmetic is transformers', its drafts change nothing but the speed."""

from typing import Any

import pytest
import torch
from models import tiny_glm4_moe, tiny_llama
from transformers.modeling_layers import MtpModel

from zigzag import CacheError, LayerPlan, ModelError, generate
from zigzag.generation.drafting import MtpDrafter
from zigzag.models.mtp_head import DUPLICATES, MtpHead
from zigzag.reference import best_tree

LAYERS = 3
MIXED = LayerPlan(("full", "streaming", "streaming"), 2, 10)
TREE = tuple(best_tree([0.6, 0.2, 0.1], 6)[0])


def target(**changes: Any) -> Any:
    return tiny_glm4_moe(LAYERS, dtype=torch.float64, num_nextn_predict_layers=1, **changes)


def head(model: Any, seed: int = 5) -> MtpHead:
    made, generator = MtpHead(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in made.state_dict().items():
            if not name.startswith(("embed_tokens", "lm_head", "rotary")):
                mean = 1.0 if "norm" in name else 0.0
                weight.copy_(mean + 0.3 * torch.randn(weight.shape, generator=generator))
    return made


def easy() -> tuple[Any, MtpHead]:
    """A target whose next token depends mostly on the last one, and a head that hands the embedding on."""
    model = target()
    made = head(model)
    with torch.no_grad():
        for name, weight in [*model.named_parameters(), *made.block.named_parameters()]:
            if "o_proj" in name or "down_proj" in name:
                weight *= 0.03
        made.eh_proj.weight.zero_()
        made.eh_proj.weight[:, : model.config.hidden_size] = torch.eye(model.config.hidden_size)
        made.enorm.weight.fill_(1)
        made.norm.weight.copy_(model.get_decoder().norm.weight)
    return model, made


def hard() -> tuple[Any, MtpHead]:
    model = target()
    return model, head(model)


def checkpoint_names(made: MtpHead) -> dict[str, torch.Tensor]:
    """The head's weights as a checkpoint names them, per expert, with the duplicates."""
    tensors: dict[str, torch.Tensor] = {}
    for name, value in made.state_dict().items():
        if name.startswith(("embed_tokens", "lm_head", "rotary")):
            continue
        name = name.removeprefix("block.")
        if name == "norm.weight":
            name = "shared_head.norm.weight"
        if name == "mlp.experts.gate_up_proj":
            for i, both in enumerate(value):
                gate, up = both.chunk(2)
                tensors[f"mlp.experts.{i}.gate_proj.weight"], tensors[f"mlp.experts.{i}.up_proj.weight"] = gate, up
        elif name == "mlp.experts.down_proj":
            tensors |= {f"mlp.experts.{i}.down_proj.weight": down for i, down in enumerate(value)}
        else:
            tensors[name] = value
    return tensors | dict.fromkeys(DUPLICATES, torch.zeros(1))


PROMPTS = [[5, 9, 2, 40, 7, 9, 2, 40, 7, 11], [3, 8, 1], [17], list(range(1, 30))]


@pytest.mark.parametrize("options", [{}, {"use_qk_norm": False, "attention_bias": True}])
@torch.inference_mode()
def test_arithmetic_is_transformers(options: dict) -> None:
    model = target(**options)
    ours, theirs = head(model), MtpModel(model, 1)
    layer = theirs.layers[0]
    for mine, other in ((ours.enorm, layer.enorm), (ours.hnorm, layer.hnorm), (ours.eh_proj, layer.eh_proj),
                        (ours.block, layer.mtp_block), (ours.norm, layer.post_norm)):  # fmt: skip
        other.to(torch.float64).load_state_dict(mine.state_dict())
    ids = torch.tensor([PROMPTS[3]])
    states = model.get_decoder()(ids).last_hidden_state[:, :-1]
    positions = torch.arange(states.shape[1])[None]
    mask = torch.full((states.shape[1],) * 2, -torch.inf, dtype=torch.float64).triu(1)[None, None]
    rotary = theirs.rotary_emb(states, positions)
    expected = layer(theirs.embed_tokens(ids[:, 1:]), states, rotary, mask, positions, None)
    got = ours(ids[:, 1:], hidden=states, position_ids=positions, attention_mask=mask)
    torch.testing.assert_close(got.last_hidden_state, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got.logits, model.lm_head(expected), rtol=1e-10, atol=1e-10)
    swapped = ours(ids[:, :-1], hidden=states, position_ids=positions, attention_mask=mask)
    with pytest.raises(AssertionError):  # the shift matters: the token after the state's position goes in
        torch.testing.assert_close(swapped.last_hidden_state, expected, rtol=1e-10, atol=1e-10)


@torch.inference_mode()
def chain_of(model: Any, made: MtpHead, tokens: list[int], length: int) -> list[int]:
    """Greedy drafts by definition: the whole text anew for each draft, with the normed state carried on."""
    states = model.get_decoder()(torch.tensor([tokens])).last_hidden_state[:, :-1]
    ids, drafts = list(tokens[1:]), []
    for _ in range(length):
        positions = torch.arange(len(ids))[None]
        mask = torch.full((len(ids),) * 2, -torch.inf, dtype=torch.float64).triu(1)[None, None]
        out = made(torch.tensor([ids]), hidden=states, position_ids=positions, attention_mask=mask)
        drafts.append(int(out.logits[0, -1].argmax()))
        ids.append(drafts[-1])
        states = torch.cat([states, out.last_hidden_state[:, -1:]], dim=1)
    return drafts


class Recording(MtpDrafter):
    """Remembers what it was asked and what it drafted."""

    def draft(self, request: Any) -> Any:
        made = super().draft(request)
        self.seen = [*getattr(self, "seen", []), ([list(row) for row in request.sequences], made)]
        return made


@pytest.mark.parametrize("make", [hard, easy])
def test_every_draft_is_the_definition(make: Any) -> None:
    """After acceptance, rejection and rows of different lengths: position, shift and state are right."""
    model, made = make()
    drafter = Recording(made, stop=3)
    result = generate(model, PROMPTS, drafter=drafter, temperature=0, max_new_tokens=12)
    copy, fresh = make()
    drafted = 0
    for sequences, draft in drafter.seen:
        for row, ids, count in zip(sequences, draft.token_ids, draft.counts, strict=True):
            assert ids[:count].tolist() == chain_of(copy, fresh, row, int(count))
            drafted += int(count)
    assert drafted > 20
    if make is easy:
        assert 0.3 < result.statistics.acceptance < 1


@pytest.mark.parametrize("parents", [None, TREE], ids=["chain", "tree"])
@pytest.mark.parametrize("plan", [None, MIXED], ids=["full", "mixed"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_change_nothing_but_the_speed(parents: Any, plan: Any, temperature: float) -> None:
    model, made = easy()
    options = {"plan": plan, "temperature": temperature, "max_new_tokens": 15}
    own = LayerPlan(("streaming",), 2, 6) if plan else None
    drafter = MtpDrafter(made, plan=own, parents=parents, stop=3)
    drafted = generate(model, PROMPTS, drafter=drafter, **options)
    if temperature == 0:
        assert drafted.sequences == generate(model, PROMPTS, **options).sequences
    for row, seed in zip(PROMPTS, range(4), strict=True):  # and rows do not touch each other
        alone = generate(model, [row], drafter=MtpDrafter(made, plan=own, parents=parents), seed=seed, **options)
        assert alone.sequences[0] == drafted.sequences[seed]


def test_sampled_drafts_say_what_they_were_drawn_from() -> None:
    model = target()
    drafter = Recording(head(model), stop=2)
    assert drafter.law == "dense"
    generate(model, PROMPTS[:2], drafter=drafter, rule="block", temperature=0.7, max_new_tokens=6)
    for _, draft in drafter.seen:
        torch.testing.assert_close(draft.probs.sum(-1), torch.ones_like(draft.probs[..., 0]))


def test_weights_by_their_checkpoint_names() -> None:
    model = target()
    source = head(model, seed=7)
    loaded = MtpHead(model).load(checkpoint_names(source))
    for name, value in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_wrong_weights_are_listed() -> None:
    model = target()
    names = checkpoint_names(head(model))
    missing = {k: v for k, v in names.items() if k != "enorm.weight"}
    for tensors, words in (
        (missing, "enorm.weight is missing"),
        (names | {"spare.weight": torch.zeros(1)}, "block.spare.weight is not a weight"),
        (names | {"hnorm.weight": torch.zeros(3)}, r"hnorm.weight must be \[32\], is \[3\]"),
        ({k: v for k, v in names.items() if k != "mlp.experts.0.up_proj.weight"}, "experts.0.up_proj"),
    ):
        with pytest.raises(ModelError, match=words):
            MtpHead(model).load(tensors)


def test_precision() -> None:
    """In bfloat16 the router's bias and the shared rotary frequencies stay in float32; the experts' default runs."""
    model = tiny_glm4_moe(LAYERS, dtype=torch.float32)
    model.set_experts_implementation("grouped_mm")
    model.bfloat16().get_decoder().rotary_emb.float()  # as `from_pretrained` leaves it
    made = MtpHead(model)
    assert made.block.mlp.gate.e_score_correction_bias.dtype == torch.float32
    assert made.eh_proj.weight.dtype == made.block.self_attn.q_proj.weight.dtype == torch.bfloat16
    assert made.rotary_emb is model.get_decoder().rotary_emb and made.rotary_emb.inv_freq.dtype == torch.float32


def converted(made: MtpHead) -> tuple[torch.Tensor, ...]:
    return made.embed_tokens.weight, made.lm_head.weight, made.rotary_emb.inv_freq


@pytest.mark.parametrize("convert", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.to("meta")])
def test_converting_the_layer_leaves_the_target(convert: Any) -> None:
    """Embedding and head belong to the target, whose tokens would become others."""
    model = target()
    made = head(model)
    before = [(tensor, tensor.dtype, tensor.device) for tensor in converted(made)]
    ids = torch.tensor([PROMPTS[3]])
    with torch.inference_mode():
        logits = model(ids).logits
        assert convert(made) is made
        assert [(t, t.dtype, t.device) for t in converted(made)] == before
        assert made.eh_proj.weight.dtype != torch.float64 or made.eh_proj.weight.device.type == "meta"
        assert made.block.mlp.gate.e_score_correction_bias.dtype == torch.float32
        assert torch.equal(model(ids).logits, logits)
        with pytest.raises(ModelError, match=r"MtpHead: the layer is .* the main model, .* torch.float64 on cpu; call"):
            made(ids, hidden=torch.zeros(1, ids.shape[1], 32), position_ids=torch.arange(ids.shape[1])[None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_converted_target_and_its_layer(dtype: torch.dtype) -> None:
    """Refused until the layer has followed; then drafts change nothing."""
    model = target()
    made = head(model)
    made.block.mlp.gate.e_score_correction_bias.add_(1 + 2**-20)  # what half precision would round
    bias = made.block.mlp.gate.e_score_correction_bias.clone()
    model.to(dtype)
    model.set_experts_implementation("grouped_mm")
    made.set_experts_implementation("grouped_mm")
    with pytest.raises(ModelError, match=rf"the layer is torch.float64 on cpu, .* {dtype} on cpu"):
        made.check_placement()
    made.to(model.device, model.dtype)
    made.check_placement()
    assert {p.dtype for p in made.parameters()} == {dtype}
    assert torch.equal(made.block.mlp.gate.e_score_correction_bias, bias)
    options = {"temperature": 0, "max_new_tokens": 8}
    plain = generate(model, PROMPTS, **options)
    drafted = generate(model, PROMPTS, drafter=MtpDrafter(made), **options)
    if dtype is torch.float32:
        assert drafted.sequences == plain.sequences
    assert sum(drafted.statistics.drafted) > 0


def test_a_head_of_another_dtype_is_noticed() -> None:
    model = target()
    made = head(model)
    model.lm_head.to(torch.float32)
    with pytest.raises(ModelError, match=r"MtpHead: the layer is torch\.float64"):
        made.check_placement()


def test_refusals() -> None:
    with pytest.raises(ModelError, match=r"GLM-4\.5 model is needed"):
        MtpHead(tiny_llama(2))
    model = target()
    done = generate(model, PROMPTS[:1], temperature=0, max_new_tokens=2)
    with pytest.raises(CacheError, match="from the start"):
        generate(model, done.sequences, drafter=MtpDrafter(head(model)), temperature=0, cache=done.cache)
