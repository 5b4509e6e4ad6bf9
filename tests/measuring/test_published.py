"""The scores of others against their formulas, over transformers' own attention weights; planted heads; refusals."""

from typing import Any

import numpy as np
import pytest
import torch
from models import random_ids, tiny_llama
from windowed_models import gpt_oss

from zigzag import ModelError, calibrate
from zigzag.measuring.observing import Seen
from zigzag.measuring.prompts import Prompt
from zigzag.measuring.published import FAR, PUBLISHED, REPEATED, _copied, _repeated
from zigzag.running.interception import States

LENGTH, ANSWERS = 40, 3
WINDOW = {"sink": 2, "recent": 8}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama(2, dtype=torch.float64)


def prompts(count: int = 3) -> list[Prompt]:
    rows = random_ids(count, LENGTH).tolist()
    for row in rows:  # the answer stands in the prompt, far back
        row[10 : 10 + ANSWERS] = row[-ANSWERS:]
    return [Prompt(tuple(row[:-ANSWERS]), tuple(row[-ANSWERS:]), 0.5, seed) for seed, row in enumerate(rows)]


def attentions(model: Any, ids: list[int]) -> np.ndarray:
    """[L, H, T, T] as transformers computes them."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            found = model(torch.tensor([ids]), output_attentions=True).attentions
    finally:
        model.set_attn_implementation(before)
    return torch.stack([layer[0] for layer in found]).double().numpy()


def grouped(values: np.ndarray, model: Any) -> np.ndarray:
    groups = model.config.num_key_value_heads
    return values.reshape(len(values), groups, -1).max(axis=-1)


def copied(weights: np.ndarray, ids: list[int]) -> np.ndarray:
    found = np.zeros(weights.shape[:2])
    for layer, head in np.ndindex(found.shape):
        for at in range(LENGTH - ANSWERS - 1, LENGTH - 1):
            top = int(weights[layer, head, at].argmax())
            found[layer, head] += ids[top] == ids[at + 1] and top >= 2 and at - top >= 8
    return found / ANSWERS


def lazy(weights: np.ndarray, ids: list[int]) -> np.ndarray:
    at = LENGTH - ANSWERS - 1
    out = weights[:, :, at, 2 : at - 7].sum(axis=-1)
    return np.broadcast_to(out.mean(axis=1, keepdims=True), out.shape)


def entropy(weights: np.ndarray, ids: list[int]) -> np.ndarray:
    rows = weights[:, :, LENGTH - ANSWERS - 1 : LENGTH - 1]
    return -(rows * np.log(np.where(rows > 0, rows, 1))).sum(axis=-1).mean(axis=-1)


def repeats(weights: np.ndarray, behind: int) -> np.ndarray:
    length = weights.shape[-1]
    block, total = length // REPEATED, np.zeros(weights.shape[:2])
    for at in range(block, length):
        for m in range(1, REPEATED):
            if at - m * block >= 0:
                total += weights[:, :, at, at - m * block + behind]
    return total / (length - block)


BY_HAND = {
    "copied": copied,
    "lazy": lazy,
    "entropy": entropy,
    "echo": lambda weights, ids: repeats(weights, 0),
    "induction": lambda weights, ids: repeats(weights, 1),
}


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("method", BY_HAND)
def test_formulas(model: Any, method: str, batch_size: int) -> None:
    given = prompts()
    rows = [list(p.input_ids) for p in given]
    if method in ("echo", "induction"):
        rows = _repeated(model, given).tolist()
    values = [BY_HAND[method](attentions(model, ids), ids) for ids in rows]
    found = calibrate(model, method=method, **WINDOW, prompts=given, batch_size=batch_size)
    np.testing.assert_allclose(found.values, grouped(np.mean(values, axis=0), model), rtol=1e-4, atol=1e-6)
    assert found.method == method


def test_mean_states(model: Any) -> None:
    """From the layers' own projections of what transformers feeds them."""
    given = prompts()
    ids = torch.tensor([p.input_ids for p in given])
    with torch.inference_mode():
        hidden = model.model(ids, output_hidden_states=True).hidden_states
        cos, sin = model.model.rotary_emb(hidden[0], torch.arange(FAR)[None])
        expected = []
        for layer, states in zip(model.model.layers, hidden, strict=False):
            normed, size = layer.input_layernorm(states), layer.self_attn.head_dim
            query, key = (
                projection(normed).unflatten(-1, (-1, size)).mean(dim=(0, 1))
                for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj)
            )

            def rotated(x: Any) -> Any:
                first, second = x.chunk(2, dim=-1)
                return x[:, None] * cos + torch.cat([-second, first], dim=-1)[:, None] * sin

            share = len(query) // len(key)
            scores = (rotated(query)[:, -1:] * rotated(key).repeat_interleave(share, dim=0)).sum(-1) / size**0.5
            expected.append(scores.softmax(-1).cumsum(-1).mean(-1).unflatten(0, (len(key), -1)).mean(-1))
    found = calibrate(model, method="mean_states", **WINDOW, prompts=given, batch_size=2)
    np.testing.assert_allclose(found.values, torch.stack(expected).numpy(), rtol=1e-4)


def test_a_head_that_looks_at_what_came_before_is_found() -> None:
    """Queries and keys of one layer are made to be the token's own: its heads echo, those of the other do not."""
    model = tiny_llama(2, dtype=torch.float64)
    attention = model.model.layers[1].self_attn
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        model.model.embed_tokens.weight.normal_(generator=generator)
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        size, width = attention.head_dim, model.config.hidden_size
        basis = torch.linalg.qr(torch.randn(width, size, generator=generator, dtype=torch.float64))[0].T
        attention.k_proj.weight.copy_(3 * basis.repeat(attention.k_proj.weight.shape[0] // size, 1))
        attention.q_proj.weight.copy_(3 * basis.repeat(attention.q_proj.weight.shape[0] // size, 1))
    model.model.rotary_emb.inv_freq.zero_()
    echo = calibrate(model, method="echo", **WINDOW, prompts=prompts()).values
    assert echo[1].min() > 3 * echo[0].max()


def test_a_seed_decides_the_random_tokens(model: Any) -> None:
    one = prompts()[:1]
    first, other = (calibrate(model, method="echo", **WINDOW, prompts=p).values for p in (one, prompts()[1:2]))
    assert (calibrate(model, method="echo", **WINDOW, prompts=one).values == first).all() and (other != first).all()
    ids = _repeated(model, one)
    assert ids.shape == (1, LENGTH) and (ids.view(REPEATED, -1) == ids.view(REPEATED, -1)[0]).all()


def test_what_cannot_be_measured() -> None:
    given = prompts()
    for method in set(PUBLISHED) - {"mean_states"}:
        with pytest.raises(ModelError, match="learned sinks; use method='layer_loss'"):
            calibrate(gpt_oss(), method=method, **WINDOW, prompts=given)
    model = tiny_llama(2)
    for layer in model.model.layers:
        layer.self_attn.qkv_proj = layer.self_attn.q_proj
        del layer.self_attn.q_proj
    with pytest.raises(ModelError, match=r"mean_states needs layers with self_attn.q_proj and k_proj"):
        calibrate(model, method="mean_states", **WINDOW, prompts=given)


def test_what_is_copied_by_hand() -> None:
    """Of four queries one looks far back at the token that comes next; others at a sink, at a near one, at another."""
    length, answers = 24, 4
    key = 30 * torch.eye(length, dtype=torch.float64)[None, None]
    ids = torch.arange(length)
    tops = [5, 0, 18, 7]
    for query, top in zip(range(length - answers - 1, length - 1), tops, strict=True):
        key_of_next = int(ids[query + 1])
        ids[top] = key_of_next if top != 7 else 99
    query = key.clone()
    query[0, 0, length - answers - 1 : length - 1] = key[0, 0, tops]
    states = States(query, key, key, None, 1.0)
    seen = Seen(states, ids[None], answers, {"sink": 2, "recent": 8, "align": 1})
    assert float(_copied(seen)) == 0.25
    assert float(_copied(seen._replace(window={"sink": 2, "recent": 1, "align": 1}))) == 0.5
    assert float(_copied(seen._replace(window={"sink": 0, "recent": 8, "align": 1}))) == 0.5
