"""The main job on a real model, from one command: calibrate, plan, prove, generate, write."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from zigzag.cli.maps import show_scores
from zigzag.cli.progress import doing, progress
from zigzag.defaults import SPARE
from zigzag.evidence.figures import heat_map
from zigzag.measuring.calibration import calibrate
from zigzag.measuring.prompts import Prompt, passkey_prompts
from zigzag.measuring.rivals import compare, rivals
from zigzag.models.decoder import CausalLM, Decoder
from zigzag.plans import formats
from zigzag.plans.layers import LayerPlan, make_plan
from zigzag.plans.scores import HeadScores
from zigzag.running.attach import attach, cache_bytes, cache_lengths, detach, kv_size
from zigzag.running.model_layers import layers_of

SINK, RECENT, LENGTH = 16, 112, 1000
CALIBRATION = ((500, 8, 0), (1000, 8, 100), (2000, 8, 200))  # (tokens, prompts, first seed)
PROOF_PROMPTS, PROOF_SEED = 8, 1_000_000


def demo(model: CausalLM, tokenizer: Any, out: Path, console: Console, *, num_streaming: int = 20) -> LayerPlan:
    """Run the five steps, print what they show, and write plan and picture into `out`."""
    num_layers = len(layers_of(model).full)
    console.rule("1. calibrate: how much does each KV head need its full cache?")
    prompts = [p for n, count, seed in CALIBRATION for p in passkey_prompts(tokenizer, n, count=count, seed=seed)]
    scores = score(model, prompts, console)
    console.rule(f"2. plan: {num_streaming} of {num_layers} layers stream")
    plan = make_plan(scores, num_full=num_layers - num_streaming)
    show_plan(plan, model, console)
    console.rule(f"3. prove it on {PROOF_PROMPTS} prompts it was not calibrated on")
    show_rivals(model, plan, passkey_prompts(tokenizer, LENGTH, count=PROOF_PROMPTS, seed=PROOF_SEED), console)
    console.rule("4. generate under the plan")
    generate(model, tokenizer, plan, console)
    console.rule("5. write")
    write(scores, plan, out, console)
    return plan


def score(model: Decoder, prompts: Sequence[Prompt], console: Console) -> HeadScores:
    """By gate gradients, with a progress bar."""
    with progress(console, "one backward pass a prompt", len(prompts)) as advance:
        return calibrate(model, sink=SINK, recent=RECENT, prompts=prompts, advance=advance)


def show_plan(plan: LayerPlan, model: Decoder, console: Console) -> None:
    """The maps of layers and scores, KV bytes against full attention, and what exclusivity costs."""
    console.print(f"layers   {plan.map()}   (F keeps its full cache, s streams {plan.sink} + {plan.recent} tokens)")
    if plan.scores is not None:
        show_scores(console, plan.scores, plan)
    table = Table("tokens", "KV bytes, full attention", "KV bytes, plan", "share")
    size = kv_size(model)
    for context in (1_000, 8_192, 32_768, 131_072):
        if context <= max(8_192, model.config.max_position_embeddings):
            full, ours = plan.full_kv_bytes(context, **size), plan.kv_bytes(context, **size)
            table.add_row(f"{context:,}", f"{full:,}", f"{ours:,}", f"{ours / full:.0%}")
    console.print(table)
    console.print(str(plan.report()))


def show_rivals(
    model: Decoder, plan: LayerPlan, prompts: Sequence[Prompt], console: Console, *, draws: int = 1
) -> None:
    """Retrieval and loss on the answer of full attention, the plan and its rivals; draws: as for `rivals`."""
    maps = rivals(plan, layers_of(model).num_kv_heads, draws=draws)
    with progress(console, "prompts", len(prompts) * len(maps)) as advance:
        measured = compare(model, plan, maps, prompts, advance=advance)
    table = Table("attention", "full heads", "passkeys", "answer loss")
    for rival in measured:
        heads, answers = rival.full_heads, rival.answers
        found = f"{answers.num_right} of {len(prompts)}"
        table.add_row(rival.name, f"{heads.sum()} of {heads.size}", found, f"{answers.loss:.3f}")
    console.print(table)


def generate(
    model: CausalLM, tokenizer: Any, plan: LayerPlan, console: Console, *, new_tokens: int = 24, length: int = LENGTH
) -> None:
    """One prompt through `model.generate` under the plan: its text, and the bytes that its cache holds."""
    prompt = passkey_prompts(tokenizer, length, count=3, seed=PROOF_SEED + 100)[1]
    ids = torch.tensor([prompt.prompt_ids], device=model.device)
    attach(model, plan)
    try:
        with doing(console, "generating under the plan"):
            result = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                do_sample=False,
                return_dict_in_generate=True,
                pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
            )
    finally:
        detach(model)
    cache, seen = result.past_key_values, result.sequences.shape[1] - 1
    size = kv_size(model)
    console.print(f"the pass key is {prompt.key}; the prompt ends: ...{tokenizer.decode(prompt.prompt_ids[-12:])!r}")
    console.print(f"continued: {tokenizer.decode(result.sequences[0, ids.shape[1] :])!r}")
    console.print(
        f"its cache after {seen:,} tokens holds {cache_bytes(cache):,} bytes; kv_bytes "
        f"says {plan.kv_bytes(seen, **size):,}, with {SPARE} spare slots a streaming layer; full attention would hold "
        f"{plan.full_kv_bytes(seen, **size):,}"
    )
    console.print(f"slots a layer: {cache_lengths(cache)}")


def write(scores: HeadScores, plan: LayerPlan, out: Path, console: Console) -> None:
    """The plan as JSON and as a DuoAttention folder, and the heat map."""
    out.mkdir(parents=True, exist_ok=True)
    plan.save(out / "plan.json")
    formats.save_duo_attention(plan, out / "duo_attention")
    pictures = heat_map(scores, plan, out / "heads.png")
    files = ("plan.json", "duo_attention/full_attention_heads.tsv", "duo_attention/config.json")
    for path in (*(out / name for name in files), *pictures):
        console.print(f"wrote {path}")
