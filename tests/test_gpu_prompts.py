"""What only a GPU shows of prompts in pieces: its kernels, its dtypes, its memory."""

import os
from typing import Any

import pytest
import torch
from models import random_ids, tiny_glm4_moe, tiny_llama
from test_runner import fresh

import zigzag
from zigzag import HeadPlan, LayerPlan, OutOfMemoryError
from zigzag.generation.drafting import MtpDrafter
from zigzag.models.mtp_head import MtpHead
from zigzag.running import memory, pieces
from zigzag.running.fixed import FixedStore
from zigzag.running.growing import GrowingStore
from zigzag.running.host import Host
from zigzag.running.runner import Runner

ON_GPU = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
pytestmark = pytest.mark.skipif(not ON_GPU, reason="needs a GPU, and --device cuda")
PLANS = {
    "full": None,
    "mixed": LayerPlan(("full", "streaming", "streaming", "full"), 16, 112),
    "aligned": LayerPlan(("full", "streaming", "streaming", "full"), 16, 112, align=16),
    "heads": HeadPlan(((True, False), (False, False), (False, True), (True, True)), 16, 112),
}
MULTIPLE = 2  # of the error that the dtype costs transformers' own forward
LENGTH = 1500  # several pieces of each size; more than the kernels' first blocks


def runner_of(host: Host, plan: Any) -> Runner:
    if isinstance(plan, HeadPlan):
        return Runner(host, GrowingStore(plan, host.layers, host.device))
    return Runner(host, FixedStore(plan, host.layers, host.device, capacity=256))


def last_logits(model: Any, plan: Any, texts: list[list[int]], size: int) -> torch.Tensor:
    with Host(model, prefill_chunk_size=size) as host, torch.inference_mode():
        runner = runner_of(host, plan)
        runner.fill([text[:-1] for text in texts])
        return runner.sync(texts).logits[:, 0].double().cpu()


@pytest.mark.parametrize("lengths", [(LENGTH,), (LENGTH, LENGTH), (700, LENGTH, 31)], ids=["alone", "alike", "ragged"])
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("make", [tiny_llama, tiny_glm4_moe])
def test_pieces_of_every_size(make: Any, name: str, lengths: tuple[int, ...]) -> None:
    """In bfloat16 within a multiple of what that costs; the oracle is the masked computation in float64 on the CPU."""
    plan, options = PLANS[name], {"max_position_embeddings": 4096}
    exact, half = make(4, dtype=torch.float64, **options), make(4, dtype=torch.bfloat16, **options)
    texts = [random_ids(1, n, seed=n)[0].tolist() for n in lengths]
    wanted = torch.stack([fresh(exact, plan, text) for text in texts])
    cost = torch.stack([fresh(half, plan, text).double() for text in texts])
    bound = MULTIPLE * float((cost - wanted).norm() / wanted.norm())
    half = half.cuda()
    for size in (4096, 1024, 512, 100):
        found = last_logits(half, plan, texts, size)
        assert float((found - wanted).norm() / wanted.norm()) <= bound, size


def test_the_bound_notices_a_piece_too_few() -> None:
    exact = tiny_llama(4, dtype=torch.float64, max_position_embeddings=4096)
    half = tiny_llama(4, dtype=torch.bfloat16, max_position_embeddings=4096)
    text = random_ids(1, LENGTH)[0].tolist()
    wanted, cost = fresh(exact, None, text), fresh(half, None, text).double()
    found = last_logits(half.cuda(), None, [text[:300] + text[400:]], 512)[0]
    assert (found - wanted).norm() > MULTIPLE * (cost - wanted).norm()


def test_an_mtp_layer_reads_pieces() -> None:
    """Drafts change no token, in whichever pieces the prompt and its states come."""
    model = tiny_glm4_moe(4, dtype=torch.float32, max_position_embeddings=4096).cuda()
    torch.manual_seed(0)
    head = MtpHead(model)
    for weight in head.block.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    ids, options = random_ids(1, 900).cuda(), {"temperature": 0, "max_new_tokens": 24, "plan": PLANS["mixed"]}
    plain = zigzag.generate(model, ids, **options).sequences
    for size in (None, 256, 70):
        drafted = zigzag.generate(model, ids, drafter=MtpDrafter(head), prefill_chunk_size=size, **options)
        assert drafted.sequences == plain and drafted.statistics.draft_steps


def test_memory_stays_under_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model large enough that torch's own pieces of memory do not count; one piece alone needs far more."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "head_dim": 64}
    model = tiny_llama(4, dtype=torch.bfloat16, max_position_embeddings=65_536, **sizes).cuda()
    prompt, bound = random_ids(1, 32_768).cuda(), 64 << 20
    monkeypatch.setattr(pieces, "bound_of", lambda device: bound)

    def needed(**options: Any) -> int:
        """Bytes beyond weights and cache."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = zigzag.generate(model, prompt, max_new_tokens=1, temperature=0, **options)
        return torch.cuda.max_memory_allocated() - before - zigzag.cache_bytes(result.cache.cache)

    needed()  # what libraries take for themselves comes with the first call
    assert needed() <= bound < needed(prefill_chunk_size=32_768)


def test_too_little_memory_is_told_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(4, dtype=torch.bfloat16, max_position_embeddings=1 << 30).cuda()
    free = memory.free_bytes(torch.device("cuda"))
    assert 0 < free <= torch.cuda.get_device_properties(0).total_memory
    with pytest.raises(OutOfMemoryError, match="GiB free: "):
        zigzag.generate(model, [[1, 2, 3]], max_new_tokens=free // 256, temperature=0)


def test_seconds_of_the_prompt_are_all_of_it() -> None:
    """The GPU was waited for: nothing of the prompt is left to do when the seconds are read."""
    model = tiny_llama(4, dtype=torch.bfloat16, max_position_embeddings=65_536).cuda()
    done = torch.cuda.Event()
    asked = []
    wait = Host.wait

    def waited(self: Host) -> None:
        done.record()
        wait(self)
        asked.append(done.query())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Host, "wait", waited)
        zigzag.generate(model, random_ids(1, 20_000).cuda(), max_new_tokens=2, temperature=0)
    assert asked == [True]
