"""The scale is the model's in every way that attends: Granite's is not D^-0.5, as every other tiny model's is."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from models import random_ids, tiny_granite
from test_fixed_runner import fixed
from test_runner import growing
from transformers import DynamicCache
from written_out import written_out

import zigzag
from zigzag import HeadPlan, LayerPlan
from zigzag.measuring.calibration import METHODS
from zigzag.measuring.prompts import Prompt
from zigzag.running.attention import FEW_QUERIES
from zigzag.running.host import Host

LAYERS = LayerPlan(("full", "streaming", "streaming"), 2, 5)
HEADS = HeadPlan(((True, False), (False, False), (True, True)), 2, 5)
PLANS = {"none": None, "layers": LAYERS, "heads": HEADS}
PIECES = (FEW_QUERIES + 5, FEW_QUERIES + 3, 3, 1)  # the start, many tokens, few, one


@pytest.fixture(scope="module")
def granite() -> Any:
    return tiny_granite(dtype=torch.float64)


@torch.inference_mode()
def expected(model: Any, rows: list[list[int]], plan: Any) -> list[torch.Tensor]:
    """Logits of each row's last tokens; attention written out, streaming heads masked."""
    full = np.ones((3, 2), dtype=bool) if plan is None else plan.full_heads(2)
    window = {"sink": 1, "recent": 1} if plan is None else plan.window(1).mask
    with written_out(model, full, **window):
        return [model(torch.tensor([row]), use_cache=False).logits[0] for row in rows]


def assert_rows(logits: torch.Tensor, model: Any, rows: list[list[int]], plan: Any) -> None:
    """Each row's last logits, those of its padding left out."""
    for row, truth in zip(logits, expected(model, rows, plan), strict=True):
        count = min(len(row), len(truth))
        torch.testing.assert_close(row[-count:], truth[-count:], rtol=0, atol=1e-9)


def pieces(rows: int) -> Iterator[torch.Tensor]:
    for seed, size in enumerate(PIECES):
        yield random_ids(rows, size, seed)


def test_another_scale_gives_other_logits(granite: Any) -> None:
    """Else no test of this file could fail."""
    rows = random_ids(1, 40).tolist()
    (logits,) = expected(granite, rows, LAYERS)
    plain = tiny_granite(dtype=torch.float64, attention_multiplier=8**-0.5)
    assert granite.model.layers[0].self_attn.scaling != plain.model.layers[0].self_attn.scaling == 8**-0.5
    with pytest.raises(AssertionError):
        assert_rows(logits[None], plain, rows, LAYERS)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ["layers", "heads"])
def test_attach(granite: Any, name: str, padded: bool) -> None:
    plan, cache, ids = PLANS[name], DynamicCache(config=granite.config), random_ids(2, 0)
    zigzag.attach(granite, plan, spare=4)
    try:
        for piece in pieces(2):
            ids = torch.cat([ids, piece], dim=1)
            mask = torch.ones_like(ids)
            mask[1, : 4 * padded] = 0
            where = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -piece.shape[1] :]
            with torch.inference_mode():
                logits = granite(piece, past_key_values=cache, attention_mask=mask, position_ids=where).logits
            zigzag.detach(granite)
            assert_rows(logits, granite, [ids[0].tolist(), ids[1, 4 * padded :].tolist()], plan)
            zigzag.attach(granite, plan, spare=4)
        with torch.inference_mode():
            whole = granite(ids, use_cache=False).logits
    finally:
        zigzag.detach(granite)
    assert_rows(whole, granite, ids.tolist(), plan)


@pytest.mark.parametrize("rows", [1, 2], ids=["one row", "rows of other lengths"])
@pytest.mark.parametrize(
    ("name", "store"),
    [
        *((name, store) for name in PLANS for store in ("growing", "as on a GPU")),
        ("none", "fixed"),
        ("layers", "fixed"),
    ],
)
def test_runner(granite: Any, name: str, store: str, rows: int) -> None:
    plan = PLANS[name]
    with torch.inference_mode():
        logits = []
        with Host(granite) as host:
            runner = fixed(host, plan, spare=8, graphs=False) if store == "fixed" else None
            runner = runner or growing(host, plan, spare=8, by_positions=store == "as on a GPU")
            first, *others = pieces(rows)
            texts = [row[b:] for b, row in enumerate(first.tolist())]
            logits.append(([list(text) for text in texts], runner.sync(texts).logits.clone()))
            for piece in others:
                out = runner.feed(piece).logits.clone()
                runner.keep([range(piece.shape[1])] * rows, piece.tolist())
                texts = [text + new for text, new in zip(texts, piece.tolist(), strict=True)]
                logits.append(([list(text) for text in texts], out))
    for done, out in logits:
        assert_rows(out, granite, done, plan)


@pytest.mark.parametrize("name", PLANS)
def test_generate(granite: Any, name: str) -> None:
    ids = random_ids(1, 40).repeat(1, 2)  # so that lookup finds drafts
    plan = PLANS[name]
    found = zigzag.generate(granite, ids, plan=plan, drafter="lookup", max_new_tokens=12, temperature=0, spare=8)
    row = ids[0].tolist()
    for _ in range(12):
        row.append(int(expected(granite, [row], plan)[0][-1].argmax()))
    assert found.sequences == [row]


@pytest.mark.parametrize(("method", "plan"), [*((method, None) for method in METHODS), ("gate_gradient", LAYERS)])
def test_scores(granite: Any, method: str, plan: LayerPlan | None) -> None:
    """As of the same model with the scale in its queries' weights and D^-0.5 beside them."""
    moved = tiny_granite(dtype=torch.float64, attention_multiplier=8**-0.5)
    for layer in moved.model.layers:
        layer.self_attn.q_proj.weight.data *= 8**0.5
    prompts = [Prompt(tuple(random_ids(1, 40, seed)[0].tolist()), (5, 6), 0.0, seed) for seed in range(2)]
    mine, theirs = (
        zigzag.calibrate(model, method=method, sink=2, recent=5, prompts=prompts, plan=plan).values
        for model in (granite, moved)
    )
    np.testing.assert_allclose(mine, theirs, rtol=1e-7, atol=1e-12)
    assert np.abs(mine).min() > 1e-6


@pytest.mark.parametrize(("dtype", "asked"), [(torch.float64, [3]), (torch.float32, [3]), (torch.bfloat16, [3, 3])])
def test_whole_prompts_in_wide_numbers_are_torchs(
    dtype: torch.dtype, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the backends' kernels for many queries are made for two bytes. Later tokens go to them."""
    model, calls = tiny_granite(dtype=dtype), []
    attention = zigzag.ops.attention
    monkeypatch.setattr(zigzag.ops, "attention", lambda q, *a, **k: calls.append(q.shape[2]) or attention(q, *a, **k))
    with Host(model) as host, torch.inference_mode():
        runner = growing(host, None, by_positions=True)
        counts = []
        for text in ([[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6]]):
            calls.clear()
            runner.fill(text)
            counts += [len(calls)] * bool(calls)
    assert counts == asked
