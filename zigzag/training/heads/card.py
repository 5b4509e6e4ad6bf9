"""A head's card: README.md of its folder, from the run's log alone."""

from pathlib import Path
from typing import Any

from zigzag.files.markdown import table
from zigzag.models import tiny_glm
from zigzag.models.draft_heads.files import model_name
from zigzag.models.draft_heads.kinds import KINDS
from zigzag.training import state as files

POINTS = 10


def write_card(out: Path, model: Any) -> Path:
    """Write `out`/README.md."""
    first, *lines = files.read_log(out)
    config = first["config"]
    steps = [line for line in lines if "accepted" in line]
    some = (
        [steps[i] for i in sorted({round(n * (len(steps) - 1) / (POINTS - 1)) for n in range(POINTS)})] if steps else []
    )
    rows = [[line["step"], f"{line['loss']:.3f}", *(f"{a:.2f}" for a in line["accepted"])] for line in some]
    kind = config["kind"]
    first_draft = 2 if kind == "pass" else 1  # behind a row of the target's own
    positions = [f"draft {n + first_draft}" for n in range(len(steps[-1]["accepted"]))] if steps else []
    done = steps[-1]["step"] if steps else 0
    ours = ["---", "license: apache-2.0", "---"] if model_name(model) == tiny_glm.NAME else []  # not others'
    text = [
        *ours,
        f"# {kind}, a draft head for {model_name(model)}",
        "",
        f"{KINDS[kind].told.capitalize()}: {first['weights']:,} weights of its own, in bfloat16, made by "
        f"`zigzag train-drafter {kind}`. `zigzag.load_head` gives it.",
        "",
        f"{done} steps of {config['steps']}, of {config['rows']} rows of {config['length']} tokens out of "
        f"{config['tokens']:,}: {config['own']:.0%} prompts and what the model wrote behind them, greedily and drawn "
        "by turns, the rest the text of Python's library. Targets are the model's own probabilities.",
        "",
        "Mean probability with which a drawn draft is accepted, by position, each after drafts that were right, on "
        "texts that are held out:",
        "",
        *table(["step", "loss", *positions], rows),
        "",
    ]
    path = out / "README.md"
    path.write_text("\n".join(text), encoding="utf-8")
    return path
