"""A head's card: README.md of its folder, from the run's log alone."""

from pathlib import Path
from typing import Any

from zigzag.files.markdown import table
from zigzag.models.draft_heads.files import model_name
from zigzag.models.draft_heads.kinds import KINDS
from zigzag.training import state as files

POINTS = 10


def write_card(out: Path, model: Any) -> Path:
    """Write `out`/README.md."""
    first, *lines = files.read_log(out)
    config = first["config"]
    steps = [line for line in lines if "accepted" in line]
    some = [steps[round(i * (len(steps) - 1) / max(1, POINTS - 1))] for i in range(min(POINTS, len(steps)))]
    rows = [[line["step"], f"{line['loss']:.3f}", *(f"{a:.2f}" for a in line["accepted"])] for line in some]
    positions = [f"draft {n + 1}" for n in range(len(steps[-1]["accepted"]))] if steps else []
    kind = config["kind"]
    text = [
        f"# {kind}, a draft head for {model_name(model)}",
        "",
        f"{KINDS[kind].told.capitalize()}: {first['weights']:,} weights of its own, in bfloat16, made by "
        f"`zigzag train-drafter {kind}`. `zigzag.load_head` gives it.",
        "",
        f"{config['steps']} steps of {config['rows']} rows of {config['length']} tokens out of "
        f"{config['tokens']:,}, of which the model wrote {config['own']:.0%} itself, greedily and drawn by turns; the "
        "rest is the text of Python's library. Targets are the model's own probabilities.",
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
