"""The main job on a real model, from one command: calibrate, plan, prove, generate, write."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from zigzag.evidence.figures import heat_map
from zigzag.measuring.answers import Answers, answer
from zigzag.measuring.calibration import calibrate
from zigzag.measuring.prompts import PasskeyPrompt, passkey_prompts
from zigzag.plans import formats
from zigzag.plans.layers import LayerPlan, head_map, make_plan
from zigzag.running.attach import attach, cache_bytes, cache_lengths, detach, kv_size
from zigzag.running.masking import masked_heads

SINK, RECENT, LENGTH = 16, 112, 1000
CALIBRATION = ((500, 8, 0), (1000, 8, 100), (2000, 8, 200))  # (tokens, prompts, first seed)
PROOF_PROMPTS, PROOF_SEED, RANDOM_SEED = 8, 1_000_000, 0


def demo(model: Any, tokenizer: Any, out: Path, console: Console, *, num_streaming: int = 20) -> LayerPlan:
    """Run the five steps, print what they show, and write plan and picture into `out`."""
    config = model.config
    console.rule("1. calibrate: how much does each KV head need its full cache?")
    prompts = [p for length, count, seed in CALIBRATION for p in _prompts(tokenizer, length, count, seed)]
    with progress(console) as bars:
        task = bars.add_task("one backward pass a prompt", total=len(prompts))
        scores = calibrate(
            model,
            method="gate_gradient",
            sink=SINK,
            recent=RECENT,
            prompts=prompts,
            advance=lambda n: bars.advance(task, n),
        )
    console.rule(f"2. plan: {num_streaming} of {config.num_hidden_layers} layers stream")
    plan = make_plan(scores, num_full=config.num_hidden_layers - num_streaming)
    show_plan(plan, model, console)
    console.rule(f"3. prove it on {PROOF_PROMPTS} prompts it was not calibrated on")
    prove(model, plan, _prompts(tokenizer, LENGTH, PROOF_PROMPTS, PROOF_SEED), console)
    console.rule("4. generate under the plan")
    generate(model, tokenizer, plan, console)
    console.rule("5. write")
    write(plan, out, console)
    return plan


def show_plan(plan: LayerPlan, model: Any, console: Console) -> None:
    """The layer map, KV bytes against full attention, and what exclusivity costs."""
    console.print(f"layers   {plan.map()}   (F keeps its full cache, s streams {plan.sink} + {plan.recent} tokens)")
    table = Table("tokens", "KV bytes, full attention", "KV bytes, plan", "share")
    size = kv_size(model)
    for context in (1_000, 8_192, 32_768, 131_072):
        if context <= max(8_192, model.config.max_position_embeddings):
            full, ours = plan.full_kv_bytes(context, **size), plan.kv_bytes(context, **size)
            table.add_row(f"{context:,}", f"{full:,}", f"{ours:,}", f"{ours / full:.0%}")
    console.print(table)
    console.print(str(plan.report()))


def prove(
    model: Any, plan: LayerPlan, prompts: list[PasskeyPrompt], console: Console, *, draws: int = 1
) -> dict[str, Answers]:
    """Retrieval and loss on the answer of full attention, the plan and its rivals, as a table.

    draws: so many sets of random layers, a row each
    """
    num_layers, heads = plan.num_layers, model.config.num_key_value_heads

    def drawn(draw: int) -> np.ndarray:
        full = np.zeros(num_layers, dtype=bool)
        full[np.random.default_rng(RANDOM_SEED + draw).choice(num_layers, plan.num_full, replace=False)] = True
        return every_head(full)

    def every_head(full: np.ndarray) -> np.ndarray:
        return np.repeat(full[:, None], heads, axis=1)

    chosen = np.array([not plan.is_streaming(i) for i in range(num_layers)])
    maps = {
        "full attention": np.ones((num_layers, heads), dtype=bool),
        f"zigzag, {num_layers - plan.num_full} layers stream": every_head(chosen),
        **({"DuoAttention, head by head": head_map(plan.scores, plan.num_full)} if plan.scores else {}),
        **{"random layers" + f", draw {n + 1}" * (draws > 1): drawn(n) for n in range(draws)},
        "all layers stream": np.zeros((num_layers, heads), dtype=bool),
    }
    results: dict[str, Answers] = {}
    with progress(console) as bars:
        task = bars.add_task("", total=len(prompts) * len(maps))
        for name, full_heads in maps.items():
            bars.update(task, description=name)
            with masked_heads(model, full_heads, sink=plan.sink, recent=plan.recent):
                results[name] = answer(model, prompts, advance=lambda n: bars.advance(task, n))
    table = Table("attention", "full heads", "passkeys", "answer loss")
    for name, full_heads in maps.items():
        found = f"{results[name].num_right} of {len(prompts)}"
        table.add_row(name, f"{full_heads.sum()} of {full_heads.size}", found, f"{results[name].loss:.3f}")
    console.print(table)
    return results


def generate(
    model: Any, tokenizer: Any, plan: LayerPlan, console: Console, *, new_tokens: int = 24, length: int = LENGTH
) -> None:
    """One prompt through `model.generate` under the plan: its text, and the bytes that its cache holds."""
    import torch

    prompt = _prompts(tokenizer, length, 3, PROOF_SEED + 100)[1]
    ids = torch.tensor([prompt.prompt_ids], device=model.device)
    spare = 64
    attach(model, plan, spare=spare)
    try:
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
        f"its cache after {seen:,} tokens holds {cache_bytes(cache):,} bytes; with {spare} spare slots a streaming "
        f"layer kv_bytes says "
        f"{plan.kv_bytes(seen, spare=spare, **size):,}, full attention would hold "
        f"{plan.full_kv_bytes(seen, **size):,}"
    )
    console.print(f"slots a layer: {cache_lengths(cache)}")


def write(plan: LayerPlan, out: Path, console: Console) -> None:
    """The plan as JSON and as a DuoAttention folder, and the heat map."""
    out.mkdir(parents=True, exist_ok=True)
    plan.save(out / "plan.json")
    formats.save_duo_attention(plan, out / "duo_attention")
    heat_map(plan.scores, plan, out / "heads.png")
    for name in ("plan.json", "duo_attention/full_attention_heads.tsv", "duo_attention/config.json", "heads.png"):
        console.print(f"wrote {out / name}")


def progress(console: Console) -> Progress:
    """The progress bar that all commands share."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=False)


def _prompts(tokenizer: Any, length: int, count: int, seed: int) -> list[PasskeyPrompt]:
    return passkey_prompts(tokenizer, length, count=count, seed=seed)
