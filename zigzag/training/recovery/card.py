"""What a recovery says of itself: README.md of its folder, from the run's log alone."""

from pathlib import Path
from typing import Any

from zigzag.files.json_files import write_text
from zigzag.files.markdown import table
from zigzag.models.draft_heads.files import model_name
from zigzag.training import state as files
from zigzag.training.recovery.config import RecoveryTraining

POINTS = 10
WHAT = {
    "lora": "an adapter of rank {rank} on the projections of attention, in PEFT's form (`adapter/`)",
    "norms+projections": "all norms and the projections of attention themselves, as a merged model (`model/`)",
    "all": "every weight, as a merged model (`model/`)",
}


def write_card(out: Path, model: Any) -> Path:
    """Write `out`/README.md."""
    first, *lines = files.read_log(out)
    config = RecoveryTraining(**first["config"])
    steps = [line for line in lines if "held_out" in line]
    points = sorted({round(n * (len(steps) - 1) / (POINTS - 1)) for n in range(POINTS)}) if steps else []
    rows = [["before", "", *_judged(first["before"], config.judged)]]
    rows += [[steps[i]["step"], f"{steps[i]['loss']:.4f}", *_judged(steps[i], config.judged)] for i in points]
    done = steps[-1] if steps else {"step": 0, "seconds": 0.0}
    sink, recent, align = first["window"]
    seen, streaming = ("by layer", "numbers: recent") if isinstance(recent, list) else (recent, "s streaming")
    aligned = f", aligned to {align}" if align > 1 else ""
    layers = "" if config.learn == "all" else f" Layers whose projections learn: {config.layers}."
    text = [
        f"# {model_name(model)}, recovered under a plan",
        "",
        f"`{first['plan']}` (F full, {streaming}), sink {sink}, recent {seen}{aligned}: `plan.json`. What learned: "
        f"{WHAT[config.learn].format(rank=config.lora_rank)}, {first['weights']:,} numbers.{layers} Made by `zigzag "
        f"recover`.",
        "",
        f"{done['step']} steps of {config.steps} in {done['seconds']:.0f} seconds, of {config.rows} rows of "
        f"{config.length} tokens: {config.retrieval:.0%} passkey prompts and codes hidden in texts, by turns, the rest "
        f"texts out of {config.tokens:,} tokens, {config.own:.0%} of them prompts and what the model wrote behind "
        f"them. Learning rate {config.peak:g} at its peak. The loss is KL(before, now) of the next token: the model's "
        f"own probabilities under full attention, beside those under the plan.",
        "",
        f"On rows that are held out, and on {config.judged} held-out passkey prompts of {config.length} tokens, of "
        f"which full attention finds {first['full']['passkeys']}; they are of a kind that was learned from:",
        "",
        *table(["step", "loss", "held-out loss", "passkeys"], rows),
        "",
    ]
    path = out / "README.md"
    write_text(path, "\n".join(text))
    return path


def _judged(line: dict[str, Any], prompts: int) -> list[str]:
    return [f"{line['held_out']:.4f}", f"{line['passkeys']} of {prompts}"]
