"""Writes what the engine's tests need and the engine's own environment cannot make: models' folders, plans, tokens.

python tests/serving/expected.py out/serving    in the project's environment
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

import zigzag
from zigzag import LayerPlan
from zigzag.models import tiny_glm
from zigzag.models.folder import save_folder

ROOT = Path(__file__).resolve().parents[2]
NEW = 16


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
    found = {}
    for name in PLANS:
        model, tokenizer = zigzag.load_model(name)
        found[name] = of_model(name, model, tokenizer, out / name)
        if name == "smollm2":
            example(out / "example", tokenizer, found[name])
            found["adapted"] = adapted(out / "adapter", model, found[name]["prompts"][:3])
    (out / "expected.json").write_text(json.dumps(found), encoding="utf-8")


def of_model(name: str, model: Any, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Where the model lies, prompts, and under each plan and none the greedy tokens and their log-probabilities."""
    where = tiny_glm.folder() if name == tiny_glm.NAME else folder / "model"
    if not where.exists():
        save_folder(model, tokenizer, where)
    folder.mkdir(parents=True, exist_ok=True)
    ids = tokenizer((ROOT / TEXT).read_text(encoding="utf-8")).input_ids
    prompts = [ids[:length] for length in LENGTHS[name]]
    runs: dict[str, Any] = {}
    for called, plan in [*PLANS[name].items(), ("none", None)]:
        path = folder / f"{called}.json"
        if plan is not None:
            plan.save(path)
        results = [greedy(model, prompt, plan) for prompt in prompts]
        runs[called] = {
            "plan": None if plan is None else str(path),
            "tokens": [result.new_tokens[0] for result in results],
            "logprobs": [result.logprobs[0] for result in results],
        }
    return {"model": str(where), "prompts": prompts, "runs": runs}


def example(folder: Path, tokenizer: Any, known: dict[str, Any]) -> None:
    """What examples/vllm/plan.py leaves, but for the hidden number: here what the answer has to be."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").exists():
        (folder / "model").symlink_to(known["model"])
    PLANS["smollm2"]["third"].save(folder / "plan.json")
    key = tokenizer.decode(known["runs"]["third"]["tokens"][-1][:12])
    (folder / "question.json").write_text(json.dumps({"prompt": known["prompts"][-1], "key": key}), encoding="utf-8")


def adapted(folder: Path, model: Any, prompts: list[list[int]]) -> dict[str, Any]:
    """The model with a random adapter, which lies in `folder` then, under the first plan. It stays in the model."""
    torch.manual_seed(0)
    other = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj", "o_proj"]))
    for name, weight in other.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.03)
    other.save_pretrained(folder)
    tokens = [greedy(other, prompt, PLANS["smollm2"]["third"]).new_tokens[0] for prompt in prompts]
    return {"adapter": str(folder), "tokens": tokens}


def greedy(model: Any, prompt: list[int], plan: LayerPlan | None) -> Any:
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": NEW, "eos_token_id": [], "logprobs": True}
    return zigzag.generate(model, [prompt], plan=plan, **options)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
