"""Writes what the engine's tests need and the engine's own environment cannot make: models' folders, plans, tokens.

python tests/serving/expected.py out/serving    in the project's environment
"""

import json
import sys
from pathlib import Path
from typing import Any

import zigzag
from zigzag import LayerPlan
from zigzag.models import tiny_glm
from zigzag.models.folder import save_folder

ROOT = Path(__file__).resolve().parents[2]
NEW = 24


def kinds(layers: int, full: set[int]) -> tuple[str, ...]:
    return tuple("full" if layer in full else "streaming" for layer in range(layers))


PLANS = {  # of 30 layers: a third full; every second, a window that no block ends; 13, which need two sets; aligned
    "smollm2": {
        "third": LayerPlan(kinds(30, set(range(0, 30, 3))), 16, 112),
        "odd": LayerPlan(kinds(30, set(range(1, 30, 2))), 5, 77),
        "thirteen": LayerPlan(kinds(30, set(range(17, 30))), 32, 96, align=32),
    },
    "tiny-glm": {"half": LayerPlan(kinds(12, {0, 2, 4, 6, 8, 11}), 8, 56)},
}
LENGTHS = {"smollm2": (7, 300, 900, 1_995), "tiny-glm": (9, 200, 700)}
TEXT = "docs/generation.md"


def main(out: Path) -> None:
    found = {name: of_model(name, out / name) for name in PLANS}
    (out / "expected.json").write_text(json.dumps(found), encoding="utf-8")


def of_model(name: str, folder: Path) -> dict[str, Any]:
    """Where the model lies, prompts, and under each plan and none the greedy tokens and their log-probabilities."""
    model, tokenizer = zigzag.load_model(name)
    if name == tiny_glm.NAME:
        where = tiny_glm.folder()
    else:
        where = folder / "model"
        if not where.exists():
            save_folder(model, tokenizer, where)
    ids = tokenizer((ROOT / TEXT).read_text(encoding="utf-8")).input_ids
    prompts = [ids[:length] for length in LENGTHS[name]]
    runs: dict[str, Any] = {}
    for called, plan in [*PLANS[name].items(), ("none", None)]:
        path = folder / f"{called}.json"
        folder.mkdir(parents=True, exist_ok=True)
        if plan is not None:
            plan.save(path)
        results = [greedy(model, prompt, plan) for prompt in prompts]
        runs[called] = {
            "plan": None if plan is None else str(path),
            "tokens": [result.new_tokens[0] for result in results],
            "logprobs": [result.logprobs[0] for result in results],
        }
    return {"model": str(where), "prompts": prompts, "runs": runs}


def greedy(model: Any, prompt: list[int], plan: LayerPlan | None) -> Any:
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": NEW, "eos_token_id": [], "logprobs": True}
    return zigzag.generate(model, [prompt], plan=plan, **options)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
