"""Prompts in pieces: every token once and in order, never more at once, and what comes out does not depend on them."""

import random

import pytest
import torch
from models import tiny_glm4_moe, tiny_llama
from test_runner import PLANS, assert_right, draw, fresh, growing
from transformers import Glm4MoeConfig

from zigzag import LayerPlan
from zigzag.running import pieces
from zigzag.running.fixed import FixedStore
from zigzag.running.host import Host
from zigzag.running.pieces import Piece, default_size, pieces_of, token_bytes
from zigzag.running.runner import Runner

ALIGNED = LayerPlan(("full", "streaming", "streaming", "full"), 4, 8, align=4)


def test_a_row_alone() -> None:
    whole = slice(0, 1)
    assert list(pieces_of([7], 3, groups_rows=True, padding_first=False)) == [
        Piece(whole, 0, 3),
        Piece(whole, 3, 6),
        Piece(whole, 6, 7),
    ]


def test_rows_that_fit_together_stay_together() -> None:
    found = list(pieces_of([2, 3, 3, 9, 1], 8, groups_rows=True, padding_first=False))
    assert found == [
        Piece(slice(0, 2), 0, 3),
        Piece(slice(2, 3), 0, 3),
        Piece(slice(3, 4), 0, 8),
        Piece(slice(3, 4), 8, 9),
        Piece(slice(4, 5), 0, 1),
    ]


def test_all_rows_at_once_share_the_tokens() -> None:
    every = slice(0, 3)
    assert list(pieces_of([2, 5, 4], 7, groups_rows=False, padding_first=False)) == [
        Piece(every, 0, 2),
        Piece(every, 2, 4),
        Piece(every, 4, 5),
    ]
    assert [p.end for p in pieces_of([2, 5, 4], 1, groups_rows=False, padding_first=False)] == [1, 2, 3, 4, 5]


def test_padding_that_must_go_is_in_the_first_piece() -> None:
    assert [p.end for p in pieces_of([2, 9, 4], 6, groups_rows=False, padding_first=True)] == [8, 9]
    assert [p.end for p in pieces_of([9, 9], 6, groups_rows=False, padding_first=True)] == [3, 6, 9]


def test_nothing_to_feed() -> None:
    assert not list(pieces_of([0, 0], 8, groups_rows=False, padding_first=True))
    assert list(pieces_of([0, 5], 5, groups_rows=True, padding_first=False)) == [Piece(slice(1, 2), 0, 5)]


AIR = Glm4MoeConfig(hidden_size=4096, num_attention_heads=96, num_key_value_heads=8, head_dim=128)


def test_the_size_of_air_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 experts a token: 6 x 4,096 numbers beside, 8 x (2 x 4,096 + 3 x 1,408) for them; 2 bytes each."""
    assert token_bytes(AIR, 2) == 2 * (6 * 4096 + 8 * (2 * 4096 + 3 * 1408)) == 247_808
    monkeypatch.setattr(pieces, "bound_of", lambda device: 2 << 30)
    assert default_size(AIR, 2, torch.device("cuda"), 1 << 20) == 8192
    monkeypatch.setattr(pieces, "bound_of", lambda device: 8192 * 247_808)
    assert default_size(AIR, 2, torch.device("cuda"), 1 << 20) == 8192
    monkeypatch.setattr(pieces, "bound_of", lambda device: 8192 * 247_808 - 1)
    assert default_size(AIR, 2, torch.device("cuda"), 1 << 20) == 4096
    monkeypatch.setattr(pieces, "bound_of", lambda device: 1)
    assert default_size(AIR, 2, torch.device("cuda"), 1 << 20) == 64, "a piece has some tokens whatever they need"


def test_attention_or_a_dense_mlp_may_need_most() -> None:
    dense = tiny_llama(1).config
    dense.hidden_size, dense.num_attention_heads, dense.num_key_value_heads, dense.head_dim = 10, 3, 2, 5
    dense.intermediate_size = 100
    assert token_bytes(dense, 4) == 4 * (60 + 300)
    dense.intermediate_size = 1
    assert token_bytes(dense, 4) == 4 * (60 + 6 * 15 + 4 * 10)


def test_a_mask_on_a_cpu_counts() -> None:
    config, cpu = tiny_llama(1).config, torch.device("cpu")
    assert pieces.bound_of(cpu) == 2 << 30
    assert default_size(config, 4, cpu, 100) == 8192
    assert default_size(config, 4, cpu, 131_072) == 2048


def runner_of(host: Host, kind: str, plan) -> Runner:
    if kind == "fixed":
        return Runner(host, FixedStore(plan, host.layers, host.device, spare=3, capacity=16, graphs=False))
    return growing(host, plan, spare=3, by_positions=kind == "by positions")


CASES = [
    (kind, name)
    for kind in ("growing", "by positions", "fixed")
    for name in (*PLANS, "aligned")
    if not (kind == "fixed" and name == "heads")
]


@pytest.mark.parametrize("size", [1, 7, 33, 40, 96])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_what_comes_out_does_not_depend_on_the_pieces(kind: str, name: str, size: int) -> None:
    """One row, rows alike and rows of all lengths; then each goes on by one, and by a long text after a common one."""
    plan = ALIGNED if name == "aligned" else PLANS[name]
    model, rng = tiny_llama(4, dtype=torch.float64), random.Random(size)
    checks = []
    with Host(model, prefill_chunk_size=size) as host, torch.inference_mode():
        for lengths in ([90], [61, 61], [80, 3, 41]):
            runner = runner_of(host, kind, plan)
            texts = [draw(rng, n) for n in lengths]
            runner.fill([text[:-1] for text in texts])
            for more in (0, 1, 50 if len(set(lengths)) == 1 else 0):
                for text in texts:
                    text[len(text) - 2 * (more == 50) :] = draw(rng, more)
                checks.append(([list(text) for text in texts], runner.sync(texts).logits[:, 0]))
            assert runner.tokens == texts
    for done, logits in checks:
        assert_right(model, plan, done, logits)


def test_no_forward_has_more_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    forward = Host.forward

    def seen(self: Host, attend, changes, **inputs):
        shapes.append(tuple(inputs["input_ids"].shape))
        return forward(self, attend, changes, **inputs)

    monkeypatch.setattr(Host, "forward", seen)
    model = tiny_llama(2)
    told: list[tuple[int, int]] = []
    with Host(model, prefill_chunk_size=12) as host, torch.inference_mode():
        runner_of(host, "fixed", None).fill([[1] * 30, [2] * 5, [3] * 6], told=lambda *both: told.append(both))
    assert shapes == [(1, 12), (1, 12), (1, 6), (2, 6)] and told == [(12, 41), (24, 41), (30, 41), (41, 41)]
    shapes.clear()
    told.clear()
    with Host(model, prefill_chunk_size=12) as host, torch.inference_mode():
        runner_of(host, "growing", None).fill([[1] * 10, [2] * 5, [3] * 6], told=lambda *both: told.append(both))
    assert shapes == [(3, 4), (3, 4), (3, 2)] and told == [(4, 21), (15, 21), (21, 21)]


@pytest.mark.parametrize("kind", ["growing", "fixed"])
def test_collected_states_are_those_of_one_piece(kind: str) -> None:
    model, rng = tiny_glm4_moe(3), random.Random(0)
    texts = [draw(rng, n) for n in (50, 9, 33)]
    found = []
    for size in (1000, 10):
        with Host(model, prefill_chunk_size=size) as host, torch.inference_mode():
            runner = runner_of(host, kind, None)
            runner.keep_hidden = True
            runner.fill(texts)
            found.append(runner.take_hidden())
            assert not any(map(len, runner.take_hidden()))
    for text, whole, pieced in zip(texts, *found, strict=True):
        assert len(whole) == len(text)
        torch.testing.assert_close(pieced, whole, rtol=0, atol=1e-5)


def test_the_comparison_notices_a_token_left_out() -> None:
    model, text = tiny_llama(4, dtype=torch.float64), draw(random.Random(0), 40)
    with pytest.raises(AssertionError):
        assert_right(model, None, [text], fresh(model, None, text[:-2] + text[-1:])[None])
