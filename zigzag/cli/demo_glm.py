"""What zigzag does for a small GLM-4.5 with its MTP layer, from one command: plan, cache, thinking, drafting."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zigzag.chat.thinking import ThinkingBudget
from zigzag.cli.demo import generate as show_cache
from zigzag.cli.demo import score, show_plan, show_rivals
from zigzag.cli.progress import doing
from zigzag.evidence.sums import parts_of, sum_prompt
from zigzag.generation.drafting import LookupDrafter, MtpDrafter
from zigzag.generation.generate import generate
from zigzag.measuring.prompts import passkey_prompts
from zigzag.models.decoder import CausalLM
from zigzag.models.glm import load_both
from zigzag.models.mtp_head import MtpHead
from zigzag.plans.layers import LayerPlan, make_plan
from zigzag.training.cases import sum_cases

LENGTH = 1000
RANDOM_DRAWS = 4  # one layer may carry all: a single draw would show chance
CALIBRATION_PROMPTS, PROOF_PROMPTS, PROOF_SEED = 4, 3, 1_000_000
SUMS, OPERANDS, DIGITS, SUM_SEED = 3, 4, 4, 5_000_000
NEW_TOKENS, BUDGET, DRAFTS = 128, 30, 3


def demo(folder: Path, out: Path, console: Console, *, device: str = "cpu", length: int = LENGTH) -> LayerPlan:
    """Show it on the model in `folder`, and write the plan into `out`.

    length: tokens of the prompts

    Raises ModelError if the folder holds no whole GLM-4.5 with an MTP layer.
    """
    from transformers import AutoTokenizer

    model, mtp = load_both(folder, dtype="float32", device=device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    layers = model.config.num_hidden_layers
    console.rule("1. plan: which layers need their full cache?")
    scores = score(model, passkey_prompts(tokenizer, length, count=CALIBRATION_PROMPTS, seed=0), console)
    plan = make_plan(scores, num_full=layers - layers // 2)
    show_plan(plan, model, console)
    prompts = passkey_prompts(tokenizer, length, count=PROOF_PROMPTS, seed=PROOF_SEED)
    show_rivals(model, plan, prompts, console, draws=RANDOM_DRAWS)
    console.rule("2. the streaming cache")
    show_cache(model, tokenizer, plan, console, length=length)
    console.rule("3. thinking and direct answers to the same sums")
    with doing(console, "answering"):
        show_modes(model, tokenizer, console)
    console.rule("4. drafts by the MTP layer")
    with doing(console, "drafting and verifying"):
        show_drafts(model, mtp, tokenizer, console)
    plan.save(out / "plan.json")
    console.print(f"wrote {out / 'plan.json'}")
    return plan


def show_modes(model: CausalLM, tokenizer: Any, console: Console) -> None:
    """Each sum answered in both modes; the thinking of the first; and what a budget does to it."""
    table = Table("sum", "true", "thinking", "direct")
    sums = sum_cases(SUMS, OPERANDS, DIGITS, SUM_SEED)
    written = {
        thinking: generate(
            model, [sum_prompt(tokenizer, one, thinking) for one in sums], temperature=0, max_new_tokens=NEW_TOKENS
        )
        for thinking in (True, False)
    }
    for i, one in enumerate(sums):
        answers = [parts_of(tokenizer, made.new_tokens[i], thinking)[1] for thinking, made in written.items()]
        table.add_row(one.question, one.answer, *map(escape, answers))
    console.print(table)
    console.print(f"its thinking about {sums[0].question}:")
    console.print(escape(parts_of(tokenizer, written[True].new_tokens[0], True)[0]), style="dim")
    cut = generate(
        model,
        [sum_prompt(tokenizer, sums[0], True)],
        temperature=0,
        max_new_tokens=NEW_TOKENS,
        logits_processor=ThinkingBudget.of(tokenizer, BUDGET),
    )
    reasoning, answer = parts_of(tokenizer, cut.new_tokens[0], True)
    said = f"with a budget of {BUDGET} tokens it ends at {reasoning[-16:]!r} and answers {answer!r}"
    console.print(said, markup=False)


def show_drafts(model: CausalLM, mtp: MtpHead, tokenizer: Any, console: Console) -> None:
    """One thinking answer without drafts, with the MTP layer's, and with those of n-gram lookup: the same tokens."""
    (one,) = sum_cases(1, OPERANDS, DIGITS, SUM_SEED + 1)
    prompt = sum_prompt(tokenizer, one, True)
    table = Table("drafts", "tokens", "a verification", "accepted of tested, by position", "seconds")
    told = None
    for name, drafter in {
        "none": None,
        "MTP layer": MtpDrafter(mtp, stop=DRAFTS),
        "n-gram lookup": LookupDrafter(DRAFTS),
    }.items():
        start = time.monotonic()
        made = generate(model, [prompt], drafter=drafter, temperature=0, max_new_tokens=NEW_TOKENS)
        seconds = time.monotonic() - start
        statistics = made.statistics
        shares = " ".join(f"{a / r:.0%}" for a, r in zip(statistics.accepted, statistics.reached, strict=True) if r)
        table.add_row(
            name,
            str(len(made.new_tokens[0])),
            f"{statistics.tokens_per_verification:.2f}",
            shares or "-",
            f"{seconds:.2f}",
        )
        told = made.new_tokens if told is None else told
        if made.new_tokens != told:
            console.print(f"{name}: other tokens than without drafts; two logits lie within rounding")
    console.print(table)
