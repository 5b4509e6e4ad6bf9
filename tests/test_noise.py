"""Uniform numbers by the block are those by the round, whatever rows, rounds and slots are asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zigzag.generation.noise import MOST_STAGES, PURPOSES, uniform_block, uniforms

torch = pytest.importorskip("torch", reason="torch is not installed")

from zigzag.generation import uniform_blocks  # noqa: E402
from zigzag.generation.uniform_blocks import UniformBlocks  # noqa: E402

seeds = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5)
purposes = st.sampled_from(sorted(PURPOSES))


def check_block(block, seeds: list[int], rounds: range, count: int, purpose: str) -> None:
    """`block` against one generator for each row and round."""
    out = block(seeds, rounds, count, purpose)
    assert out.dtype == np.float32 and out.shape == (len(rounds), len(seeds), count)
    assert np.array_equal(out, np.stack([uniforms(seeds, round_, count, purpose) for round_ in rounds]))


@settings(max_examples=60)
@given(seeds=seeds, first=st.integers(0, 2**62), length=st.integers(1, 5), count=st.integers(0, 13), purpose=purposes)
def test_blocks_are_rounds(seeds: list[int], first: int, length: int, count: int, purpose: str) -> None:
    check_block(uniform_block, seeds, range(first, first + length), count, purpose)


def test_other_numbers_are_noticed() -> None:
    def shifted(seeds, rounds, count, purpose):
        return uniform_block(seeds, range(rounds.start + 1, rounds.stop + 1), count, purpose)

    def other_purpose(seeds, rounds, count, purpose):
        return uniform_block(seeds, rounds, count, "verify" if purpose == "draft" else "draft")

    def rounded(seeds, rounds, count, purpose):
        return np.round(uniform_block(seeds, rounds, count, purpose) * 2**23) / np.float32(2**23)

    for wrong in (shifted, other_purpose, rounded):
        with pytest.raises(AssertionError):
            check_block(wrong, [3, 2**64 - 1], range(4), 5, "draft")


def test_large_seeds_are_told_apart() -> None:
    assert len({float(uniforms([2**63 + n], 0, 1, "verify")[0, 0]) for n in range(50)}) == 50


@settings(max_examples=40)
@given(data=st.data(), seeds=seeds, purpose=purposes, rounds=st.integers(1, 4), slots=st.integers(1, 6))
def test_each_round_gets_its_numbers(data, seeds: list[int], purpose: str, rounds: int, slots: int) -> None:
    """Across the ends of blocks, with rounds left out or asked for again, rows that go or come, more slots."""
    blocks, round_ = UniformBlocks(purpose, "cpu", slots=slots, rounds=rounds), 0
    for _ in range(8):
        rows = data.draw(st.permutations(seeds))[: data.draw(st.integers(1, len(seeds)))]
        if data.draw(st.integers(0, 5)) == 0:
            rows = [*rows, data.draw(st.integers(0, 2**64 - 1))]
        round_ = max(0, round_ + data.draw(st.integers(-1, 3)))
        count = data.draw(st.integers(0, 9))
        assert np.array_equal(blocks(rows, round_, count).numpy(), uniforms(rows, round_, count, purpose))


def test_uploads_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for a block, one when rows go, none in the other rounds."""
    uploads: list[torch.Size] = []
    monkeypatch.setattr(uniform_blocks, "to_device", lambda values, device: (uploads.append(values.shape), values)[1])
    blocks = UniformBlocks("verify", "cpu", slots=5, rounds=16)
    for round_ in range(20):
        rows, count = [7, 8, 9] if round_ < 4 else [7, 9], 1 + round_ % 5
        assert np.array_equal(blocks(rows, round_, count).numpy(), uniforms(rows, round_, count, "verify"))
    assert uploads == [(16, 3, 5), (2,), (16, 2, 5)]
    blocks([7, 9], 20, 6)  # more slots than the block has
    assert uploads[3:] == [(16, 2, 6)]
    blocks([9], 21, 6)
    blocks([9, 4], 21, 6)  # a row that is not in the block
    assert uploads[4:] == [(1,), (16, 2, 6)]


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # a prototype, it says
@pytest.mark.skipif(not torch.cuda.is_available(), reason="waiting for a GPU needs a GPU")
def test_nothing_waits_for_the_device() -> None:
    """Neither in a new block, nor when rows go, nor in the rounds between; a plain upload does."""
    blocks = UniformBlocks("verify", "cuda", slots=5, rounds=4)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [blocks(rows, round_, 5) for round_ in range(9) for rows in ([7, 8, 9], [9, 7])]
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(3).to("cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    wanted = [uniforms(rows, round_, 5, "verify") for round_ in range(9) for rows in ([7, 8, 9], [9, 7])]
    assert all(np.array_equal(one.cpu().numpy(), two) for one, two in zip(found, wanted, strict=True))


def test_numbers_are_the_same_in_every_version() -> None:
    """Seeds of today give the tokens of today; drafts and verdicts have numbers of their own."""
    assert (PURPOSES["verify"], PURPOSES["draft"]) == (0, 1)
    assert PURPOSES["draft 1"] == 2 and len(set(PURPOSES.values())) == len(PURPOSES) == MOST_STAGES + 1
    found = uniform_block([3], range(2, 3), 2, "draft")[0, 0].tolist()
    generator = np.random.Philox(key=np.array([3, 1], dtype=np.uint64), counter=np.array([0, 2, 0, 0], np.uint64))
    assert found == [float(int(word) >> 40) * 2.0**-24 for word in generator.random_raw(2)]
