"""The model card: README.md of the model's folder, written from the run's log and evaluation alone."""

from pathlib import Path
from typing import Any

from zigzag.files.markdown import table
from zigzag.models import tiny_glm
from zigzag.training import state as files
from zigzag.training.config import ASKED, KINDS

CURVE_POINTS = 12
TINY_LIMITS = """\
It knows no facts and holds no conversation. It was made to have, at a size that trains in minutes, what GLM-4.5's
machinery needs to be watched at work: retrieval over thousands of tokens, thinking that pays, an MTP layer, experts
that balance. Its text is Python's library; its retrieval is tested on prompts of the kinds that it was trained on, with
other keys; its sums have the numbers of digits that it was trained on. Beyond 8,192 tokens nothing was trained."""
LIMITS = """\
It knows no facts and holds no conversation. Its text is Python's library; it is tested on prompts of the kinds that it
was trained on, with other cases. Beyond {longest:,} tokens nothing was trained."""


def write_card(out: Path, evaluation: dict[str, Any]) -> Path:
    """Write `out`/model/README.md."""
    lines = files.read_log(out)
    first, steps, last = lines[0], [line for line in lines if "losses" in line], lines[-1]
    name = first["config"].get("name", tiny_glm.NAME)  # whose record is older than names
    given = f'"{name}"' if name == tiny_glm.NAME else "FOLDER"
    card = "\n".join(
        [
            "---",
            "license: apache-2.0",
            "---",
            f"# {name}",
            "",
            f"GLM-4.5's architecture at {first['parameters'] / 1e6:.2f} million parameters, its MTP layer included, in "
            "bfloat16; made by zigzag.training from nothing but this repository and a Python installation. "
            f"`model, mtp = zigzag.load({given})` gives it and its MTP layer.",
            "",
            *_data(first),
            *_cost(first, steps, last),
            *_curves(steps),
            *_evaluation(evaluation),
            "## Limits",
            "",
            TINY_LIMITS if name == tiny_glm.NAME else LIMITS.format(longest=_longest(first)),
        ]
    )
    path = out / files.MODEL / "README.md"
    path.write_text(card + "\n", encoding="utf-8")
    return path


def _longest(first: dict[str, Any]) -> int:
    return max(int(stage["length"]) for stage in first["config"]["stages"])


def _sources(first: dict[str, Any]) -> str:
    """What the rows are made of, and how what is held out is known."""
    config = first["config"]
    trained = {task for stage in config["stages"] for task, share in stage["mix"].items() if share > 0}
    asked = ", ".join(task for task in ASKED if task in trained)
    words = {
        "sums": f"sums of {config['operands']} numbers of {config['least_digits']} to {config['most_digits']} digits, "
        "thinking and direct by turns",
        "passkey": "passkeys",
        "recall": "codes of named things",
        "copy": "copying",
    }
    told = [words[task] + "; " for task in words if task in trained]
    if asked:
        told.append(f"prompts of zigzag.measuring.tasks ({asked}); ")
    text = (
        f"{''.join(told)}{'and ' if told else ''}the sources and documentation of Python {first['python']}'s own "
        f"library (fingerprint {first['corpus']}). One case in 16 is held out, by a hash of the case"
    )
    apart = "; the tasks' prompts in training have seeds that evaluation never takes" if asked else ""
    return f"{text[0].upper()}{text[1:]}{apart}."


def _data(first: dict[str, Any]) -> list[str]:
    config = first["config"]
    stages = [
        [
            stage["name"],
            stage["length"],
            steps,
            f"{stage['length'] * stage['rows'] * steps / 1e6:.1f}",
            f"{stage['rope_theta']:,.0f}",
            stage["mtp_weight"],
            stage["bias_rate"],
            ", ".join(f"{task} {share:g}" for task, share in stage["mix"].items()),
        ]
        for stage, steps in zip(config["stages"], first["steps"], strict=True)
    ]
    return [
        "## Data",
        "",
        _sources(first),
        "",
        *table(["stage", "row", "steps", "million tokens", "RoPE base", "MTP weight", "bias rate", "rows"], stages),
        "",
    ]


def _cost(first: dict[str, Any], steps: list[dict[str, Any]], last: dict[str, Any]) -> list[str]:
    seen = {line["stage"]: line["tokens_per_second"] for line in steps}
    rates = ", ".join(f"{stage} {rate:,}" for stage, rate in seen.items())
    whole = "" if last["finished"] else f", stopped before its end (step {last['step']} of {last['of']})"
    return [
        "## Cost",
        "",
        f"{last['seconds']:.0f} seconds on {first['device']}, everything from the tokenizer to the weights{whole}. "
        f"Tokens a second by stage: {rates}.",
        "",
    ]


def _curves(steps: list[dict[str, Any]]) -> list[str]:
    some = [steps[round(i * (len(steps) - 1) / (CURVE_POINTS - 1))] for i in range(min(CURVE_POINTS, len(steps)))]
    kinds = [kind for kind in KINDS if any(kind in line["losses"] for line in some)]
    rows = [
        [
            line["step"],
            line["stage"],
            *(f"{line['losses'][k]:.3f}" if k in line["losses"] else "" for k in kinds),
            f"{line['mtp_losses']['text']:.3f}" if "text" in line["mtp_losses"] else "",
            f"{max(line['violation']):.2f}",
        ]
        for line in some
    ]
    return [
        "## Curves",
        "",
        "Mean loss by what a token is part of, the MTP layer's on text, and the expert load of the worst layer: how "
        "much its busiest expert exceeds the mean.",
        "",
        *table(["step", "stage", *kinds, "MTP, text", "load"], rows),
        "",
    ]


def _evaluation(found: dict[str, Any]) -> list[str]:
    lines = [
        "## Evaluation",
        "",
        f"{found['cases']} held-out cases each; streaming is sink {found['sink']} and recent {found['recent']}.",
        "",
    ]
    if "retrieval" in found:
        rows = [
            [task, length, *(f"{cell[name]['right']:.2f} ({cell[name]['loss']:.3f})" for name in ("full", "streaming"))]
            for task in ("passkey", "recall", *ASKED)
            for length, cell in found["retrieval"].get(task, {}).items()
        ]
        lines += [*table(["retrieval", "tokens", "full attention (loss)", "all layers stream (loss)"], rows), ""]
    if "arithmetic" in found:
        by_digits = {digits: cell for digits, cell in found["arithmetic"].items() if digits.isdigit()}
        rows = [[digits, f"{cell['thinking']:.2f}", f"{cell['direct']:.2f}"] for digits, cell in by_digits.items()]
        lines += [*table(["digits", "thinking", "direct"], rows), ""]
    if "drafting" in found:
        rows = [
            [
                kind,
                name,
                drafts,
                *(
                    " ".join("-" if a is None else f"{a:.2f}" for a in cell[share])
                    for share in ("of_rounds", "conditional")
                ),
                f"{cell['tokens_per_verification']:.2f}",
            ]
            for kind in ("thinking", "text")
            for name, cells in found["drafting"].get(kind, {}).items()
            for drafts, cell in cells.items()
        ]
        head = ["text", "drafts", "K", "accepted of all rounds, by position", "of tested", "tokens a verification"]
        lines += [*table(head, rows), ""]
    if "copying" in found:
        full, streaming = (f"{found['copying'][name]['right']:.2f}" for name in ("full", "streaming"))
        lines += [f"Copied without a fault: {full} with full attention, {streaming} with all layers streaming.", ""]
    if "curves" in found:
        lines += _shares(found["curves"], found.get("random", {}))
    return lines


def _shares(found: dict[str, Any], random: dict[str, Any]) -> list[str]:
    """Retrieval and loss by how many layers stream."""
    plans = {f"{how}, {method}": cells for how in ("layer", "head") for method, cells in found[how].items()}
    counts = list(next(iter(plans.values())))
    if random:
        plans[f"random layers, mean of {len(random[counts[0]]['draws'])} draws ({random['where']})"] = random
    rows = [[name, *(_cell(cells[n]) for n in counts)] for name, cells in plans.items()]
    return [
        f"Passkeys found at {found['length']:,} tokens (loss on them; loss on held-out text) by how many of "
        f"{found['layers']} layers stream, or as many heads; none: {_cell(found['full'])}, all: "
        f"{_cell(found['streaming'])}.",
        "",
        *table(["plan", *counts], rows),
        "",
    ]


def _cell(measured: dict[str, float]) -> str:
    text = f"; {measured['text_loss']:.2f}" if "text_loss" in measured else ""
    return f"{measured['right']:.2f} ({measured['loss']:.2f}{text})"
