"""The suite `step`: one whole decoding step of a slice of GLM-4.5-Air, and the loop around it.

Random weights, random keys and values: nothing here says anything about quality. Each row of ours also says how long a
prompt of as many tokens takes, computed and not drawn. On a GPU the slice has Air's sizes and
8 layers; on a CPU it is tiny. A step reads every weight that it uses and the cache once; that is the floor.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, Glm4MoeConfig, Glm4MoeForCausalLM
from transformers.initialization import no_init_weights

from zigzag.bench.cases import Later, Row, relative
from zigzag.bench.stock import greedy
from zigzag.bench.timing import copy_rate, replay_time, synchronize
from zigzag.generation.drafting.draft import Draft, Request
from zigzag.generation.generate import generate
from zigzag.models.decoder import CausalLM, Decoder
from zigzag.plans.layers import LayerPlan
from zigzag.running.fixed import FixedStore
from zigzag.running.host import Host
from zigzag.running.runner import Runner
from zigzag.running.shards import local, share_of_heads

Sizes = dict[str, Any]  # of Glm4MoeConfig

AIR: Sizes = {
    "vocab_size": 151_552,
    "hidden_size": 4_096,
    "intermediate_size": 10_944,
    "moe_intermediate_size": 1_408,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "n_routed_experts": 128,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "max_position_embeddings": 262_144,
}
TINY: Sizes = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "max_position_embeddings": 4_096,
}
LAYERS, SINK, RECENT, DRAFTS, NEW_TOKENS = 8, 128, 896, 4, 64
CONTEXTS = (131_072, 2_048, 32_768)  # the longest first: a run may break off
ERROR_RATES = (0.0, 0.2)  # of synthetic drafts, a token


def step(device: torch.device) -> Iterator[Later]:
    """For each context: a step of 1 and of 5 tokens, full and half streaming, then whole loops."""
    gpu = device.type == "cuda"
    model = slice_of_air(device, AIR if gpu else TINY)
    half = LayerPlan(("full", "streaming") * (LAYERS // 2), SINK, RECENT)
    for context in CONTEXTS if gpu else (min(CONTEXTS),):
        cache = RandomCache(model, context, device)
        for name, plan in {"full": None, "half streaming": half}.items():
            labels, prompt = {"context": context, "layers": name}, RealPrompt(model, cache.ids, plan)
            for tokens in (1, 1 + DRAFTS):
                one = labels | {"tokens": tokens}
                yield Later("step", one, partial(_one_step, model, cache, prompt, one))
            loops = labels | {"tokens": f"loop of {NEW_TOKENS}"}
            yield Later("step", loops, partial(_loops, model, cache, prompt, loops))


def slice_of_air(device: torch.device, sizes: Sizes, *, layers: int = LAYERS, dense: int = 1) -> CausalLM:
    """The first `dense` layers dense, the others with experts; random."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5}
    config = Glm4MoeConfig(
        **sizes,
        num_hidden_layers=layers,
        first_k_dense_replace=dense,
        attention_bias=True,
        use_qk_norm=False,
        rope_parameters=rope,
        eos_token_id=None,
        pad_token_id=None,
    )
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with no_init_weights(), device:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        model = Glm4MoeForCausalLM(config)
        torch.set_default_dtype(before)
    generator = torch.Generator(device).manual_seed(0)
    for name, weight in model.named_parameters():
        scale = 0.02 if weight.dim() > 1 else 0.0
        weight.data.normal_(1.0 if "norm" in name else 0.0, scale, generator=generator)
    for module in model.modules():
        if isinstance(bias := getattr(module, "e_score_correction_bias", None), Tensor):
            module.e_score_correction_bias = torch.zeros_like(bias, dtype=torch.float32)
    model.train(False)
    return model


@dataclass
class RandomCache:
    """The keys and values of `length` tokens that nobody computed; each layer's are drawn anew when asked for."""

    model: Decoder
    length: int
    device: torch.device
    ids: list[int] = field(init=False)

    def __post_init__(self) -> None:
        draw = np.random.default_rng(self.length)
        self.ids = draw.integers(0, self.model.config.vocab_size, self.length).tolist()

    def states(self) -> Iterator[tuple[Tensor, Tensor]]:
        config, dtype = self.model.config, self.model.dtype
        shape = (1, config.num_key_value_heads, self.length, config.head_dim)
        for layer in range(config.num_hidden_layers):
            generator = torch.Generator(self.device).manual_seed(layer)
            key, value = (torch.randn(shape, generator=generator, device=self.device, dtype=dtype) for _ in range(2))
            yield key, value

    def of_transformers(self) -> DynamicCache:
        cache = DynamicCache()
        for layer, (key, value) in enumerate(self.states()):
            cache.update(key, value, layer)
        return cache

    def runner(self, host: Host, plan: LayerPlan | None, graphs: bool) -> tuple[Runner, FixedStore]:
        device = host.device
        store = FixedStore(plan, host.layers, device, capacity=self.length + 256, graphs=graphs)
        runner = Runner(host, store)
        runner.adopt([self.ids], self.states())
        return runner, store


@dataclass
class RealPrompt:
    """As many tokens as the random cache holds, computed by `zigzag.generate` under the same plan."""

    model: CausalLM
    ids: list[int]
    plan: LayerPlan | None

    @cached_property
    def seconds(self) -> float:
        """Of the prompt's work alone; the call before it, which compiles, does not count."""
        once = partial(generate, self.model, [self.ids], plan=self.plan, temperature=0.0, max_new_tokens=1)
        return [once(eos_token_id=[]).statistics.seconds_prefill for _ in range(2)][-1]


def step_bytes(model: Decoder, context: int, plan: LayerPlan | None, tokens: int, rows: int = 1) -> int:
    """Weights that `tokens` tokens a row use, each once, experts as independent draws would hit them; and the cache.

    Of a model over several processes, what this one reads.
    """
    config, width = model.config, model.dtype.itemsize
    experts, used = config.n_routed_experts, config.num_experts_per_tok
    share = 1 - (1 - used / experts) ** (rows * tokens)
    weights = sum(
        int(local(weight).numel() * (share if ".experts." in name else 1))
        for name, weight in model.named_parameters()
        if "embed_tokens" not in name
    )
    streams = 0 if plan is None else plan.num_layers - plan.num_full
    kept = streams * min(context, SINK + RECENT) + (config.num_hidden_layers - streams) * context
    heads = config.num_key_value_heads // share_of_heads(model)[1]
    return int(width * (weights + 2 * rows * kept * heads * config.head_dim))


def _one_step(model: CausalLM, cache: RandomCache, prompt: RealPrompt, labels: dict[str, Any]) -> list[Row]:
    device, tokens, plan = cache.device, labels["tokens"], prompt.plan
    shared: dict[str, Any] = {
        "suite": "step",
        "labels": labels,
        "floor": 1e6 * step_bytes(model, cache.length, plan, tokens) / copy_rate(device),
    }
    ids = torch.randint(model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(1)).to(device)
    rows: list[Row] = []
    truth: Tensor | None = None
    with torch.inference_mode():
        if plan is None:
            states = cache.of_transformers()
            truth = _stock(model, ids, states)
            time = _wall(lambda: _stock(model, ids, states), device)
            rows.append(Row(**shared, method="transformers", eager=time, error=0.0))
            del states
        seconds = prompt.seconds
        with Host(model) as host:
            for graphs in (False, True) if device.type == "cuda" else (False,):
                row, logits = _of_runner(*cache.runner(host, plan, graphs), ids, truth, shared)
                truth = logits if truth is None else truth
                rows.append(replace(row, prompt=seconds))
    return rows


def _of_runner(
    runner: Runner, store: FixedStore, ids: Tensor, truth: Tensor | None, shared: dict[str, Any]
) -> tuple[Row, Tensor]:
    """Without a truth from outside, the logits are the truth for the rows to come."""
    logits = fed(runner, ids)
    row = Row(
        **shared,
        method="zigzag, graph" if store.graphs else "zigzag, no graph",
        error=relative(logits, logits if truth is None else truth),
        graph=replayed(store, ids),
        eager=_wall(lambda: _fed(runner, ids), ids.device),
        remark="error: beside the same kernels without a graph" if store.rings else "",
    )
    return row, logits


def fed(runner: Runner, ids: Tensor) -> Tensor:
    """The logits of a step that has been captured, where graphs are used, and replayed."""
    return [_fed(runner, ids).clone() for _ in range(3)][-1]


def replayed(store: FixedStore, ids: Tensor) -> float | None:
    """Microseconds of the step's graph, after `fed`; None without graphs."""
    return replay_time(store.captured(1, ids.shape[1]).graph.replay) if store.graphs else None


def _stock(model: Decoder, ids: Tensor, cache: DynamicCache) -> Tensor:
    """One forward of transformers as it is; the tokens are taken back."""
    logits: Tensor = model(input_ids=ids, past_key_values=cache, logits_to_keep=ids.shape[1]).logits
    cache.crop(-ids.shape[1])
    return logits


def _fed(runner: Runner, ids: Tensor) -> Tensor:
    """One step of a runner; the tokens are taken back."""
    logits = runner.feed(ids).logits
    runner.keep([[]], [[]])
    return logits


def _wall(call: Callable[[], object], device: torch.device, runs: int = 12) -> float:
    """Median microseconds of a step with all that the host does, the device waited for after each."""
    times = []
    for _ in range(runs + 2):
        synchronize(device)
        begin = perf_counter()
        call()
        synchronize(device)
        times.append(1e6 * (perf_counter() - begin))
    return median(times[2:])


class Replay:
    """Drafts the continuation that the target is known to give, each token wrong with a given chance. Synthetic."""

    law, longest, parents = "one-hot", DRAFTS, None

    def __init__(self, continuation: list[int], start: int, rate: float, vocabulary: int) -> None:
        self.continuation, self.start, self.vocabulary = continuation, start, vocabulary
        self.wrong = np.random.default_rng(0).random(len(continuation)) < rate

    def draft(self, request: Request) -> Draft:
        done = len(request.sequences[0]) - self.start
        some = slice(done, done + min(DRAFTS, request.most[0]))
        ids = np.array([self.continuation[some]], dtype=np.int64)
        return Draft(np.where(self.wrong[some], (ids + 1) % self.vocabulary, ids), np.array([ids.shape[1]]))

    def observe(self, drafted: Any, accepted: Any) -> None:
        """Nothing to learn."""

    def select(self, rows: Any) -> None:
        """Nothing to keep."""


def _loops(model: CausalLM, cache: RandomCache, prompt: RealPrompt, labels: dict[str, Any]) -> list[Row]:
    """Greedy loops of `NEW_TOKENS` tokens, microseconds a token, prefill not counted."""
    device, plan = cache.device, prompt.plan
    shared: dict[str, Any] = {
        "suite": "step",
        "labels": labels,
        "floor": 1e6 * step_bytes(model, cache.length, plan, 1) / copy_rate(device),
    }
    rows: list[Row] = []
    ids = [*cache.ids, 7]
    if plan is None:
        time = _per_token(lambda: greedy(model, ids, NEW_TOKENS, past_key_values=cache.of_transformers()), device)
        rows.append(Row(**shared, method="transformers generate", eager=time))
    shared["prompt"] = prompt.seconds
    with torch.inference_mode():
        with Host(model) as host:
            runner, _ = cache.runner(host, plan, device.type == "cuda")

        def loop(drafter: Replay | None = None) -> list[int]:
            result = generate(
                model,
                [ids],
                plan=plan,
                drafter=drafter,
                temperature=0.0,
                cache=runner,
                max_new_tokens=NEW_TOKENS,
                eos_token_id=[],
            )
            return result.new_tokens[0]

        plain = loop()
        rows.append(Row(**shared, method="zigzag.generate", eager=_per_token(loop, device)))
        for rate in ERROR_RATES:
            drafter = Replay(plain, len(ids), rate, model.config.vocab_size)
            rounds = _settle(loop, drafter)
            same = sum(a == b for a, b in zip(drafter.continuation, plain, strict=True))
            rows.append(
                Row(
                    **shared,
                    method=f"zigzag.generate, synthetic drafts, {rate:.0%} wrong",
                    eager=_per_token(partial(loop, drafter), device),
                    remark=f"drafts settled in {rounds} rounds; {same} of {NEW_TOKENS} tokens as in single steps",
                )
            )
    return rows


def _settle(loop: Callable[[Replay], list[int]], drafter: Replay, most: int = 20) -> int:
    """Let the drafts be what the loop with them gives; how often that took, `most` if it never did.

    Random weights give near ties, and there steps of 1 and 5 tokens, or other tokens beside one, may differ.
    """
    for round_ in range(1, most):
        found = loop(drafter)
        if found == drafter.continuation:
            return round_
        drafter.continuation = found
    return most


def _per_token(loop: Callable[[], object], device: torch.device, runs: int = 3) -> float:
    """Median microseconds a new token over a few whole loops."""
    return _wall(loop, device, runs) / NEW_TOKENS
