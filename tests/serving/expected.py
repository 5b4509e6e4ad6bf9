"""Writes what the engine's tests need and the engine's own environment cannot make: models' folders, plans, tokens.

python tests/serving/expected.py out/serving    in the project's environment
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import zigzag
from zigzag import LayerPlan
from zigzag.chat.reasoning import Content, Reasoning, parse
from zigzag.chat.thinking import chat_prompt
from zigzag.models import tiny_glm
from zigzag.models.folder import save_folder

ROOT = Path(__file__).resolve().parents[2]
NEW = 16


def place(path: Path) -> str:
    """Seen from the project's folder, so that what is expected may be carried to another machine."""
    return str(path.resolve().relative_to(ROOT)) if path.resolve().is_relative_to(ROOT) else str(path)


def kinds(layers: int, full: set[int]) -> tuple[str, ...]:
    return tuple("full" if layer in full else "streaming" for layer in range(layers))


PLANS = {  # of 30 layers: a third full; every second, a window that no block ends; 13, which need two sets; aligned
    "smollm2": {
        "third": LayerPlan(kinds(30, set(range(0, 30, 3))), 16, 112),
        "odd": LayerPlan(kinds(30, set(range(1, 30, 2))), 5, 77),
        "thirteen": LayerPlan(kinds(30, set(range(17, 30))), 32, 96, align=32),
    },
    "tiny-glm": {"half": LayerPlan(kinds(12, {0, 2, 4, 6, 8, 11}), 8, 56)},
    "random-llama": {
        "half": LayerPlan(kinds(6, {0, 2, 4}), 16, 112),
        "odd": LayerPlan(kinds(6, {1}), 5, 77),
        "aligned": LayerPlan(kinds(6, {0, 1, 5}), 32, 96, align=32),
    },
}
LENGTHS = {"smollm2": (7, 300, 900, 1_995), "tiny-glm": (9, 200, 700), "random-llama": (7, 300, 900, 1_980)}
TEXT = "docs/generation.md"


def main(out: Path) -> None:
    found = {}
    for name in PLANS:
        model, tokenizer = random_llama() if name == "random-llama" else zigzag.load_model(name)
        found[name] = of_model(name, model, tokenizer, out / name)
        if name == "smollm2":
            example(out / "example", tokenizer, found[name])
        if name == "random-llama":
            found["adapted"] = adapted(out / "adapter", model, found[name]["prompts"][:3])
        if name == "tiny-glm":
            found["chat"] = chat(model, tokenizer) | {"model": found[name]["model"]} | found[name]["runs"]["half"]
    (out / "expected.json").write_text(json.dumps(found), encoding="utf-8")


def random_llama() -> tuple[Any, Any]:
    """Heads as Llama's, of random numbers that half precision holds exactly; small enough to go to a card's machine."""
    torch.manual_seed(0)
    _, tokenizer = zigzag.load_model("tiny-glm")
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6, "head_dim": 64}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    config = LlamaConfig(vocab_size=2048, initializer_range=0.1, **shape, **heads)
    model = LlamaForCausalLM(config).eval()
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()
    return model, tokenizer


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
            "plan": None if plan is None else place(path),
            "tokens": [result.new_tokens[0] for result in results],
            "logprobs": [result.logprobs[0] for result in results],
        }
        if name == "random-llama":
            runs[called]["of_prompts"] = [scored(model, prompt, plan) for prompt in prompts]
    return {"model": place(where), "prompts": prompts, "runs": runs}


def scored(model: Any, prompt: list[int], plan: LayerPlan | None) -> list[float]:
    """Log-probabilities of a prompt's tokens but the first."""
    if plan is not None:
        zigzag.attach(model, plan)
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt])).logits[0, :-1].double().log_softmax(dim=-1)
    if plan is not None:
        zigzag.detach(model)
    found: list[float] = logprobs.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist()
    return found


def example(folder: Path, tokenizer: Any, known: dict[str, Any]) -> None:
    """What examples/vllm/plan.py leaves, but for the hidden number: here what the answer has to be."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").exists():
        (folder / "model").symlink_to(ROOT / known["model"])
    PLANS["smollm2"]["third"].save(folder / "plan.json")
    key = tokenizer.decode(known["runs"]["third"]["tokens"][-1][:12])
    (folder / "question.json").write_text(json.dumps({"prompt": known["prompts"][-1], "key": key}), encoding="utf-8")


def chat(model: Any, tokenizer: Any) -> dict[str, Any]:
    """A question, and what is answered with thinking and without: (reasoning, content)."""
    question, answers = [{"role": "user", "content": "What is 3141+2718+1618+1414?"}], {}
    for thinking in (True, False):
        prompt = chat_prompt(tokenizer, question, thinking=thinking)
        made = zigzag.generate(model, [prompt], plan=PLANS["tiny-glm"]["half"], temperature=0, max_new_tokens=160)
        text = tokenizer.decode(made.new_tokens[0], skip_special_tokens=True)
        events = parse(text, thinking=thinking)
        answers["thinking" if thinking else "direct"] = [
            "".join(event.text for event in events if isinstance(event, kind)).strip() for kind in (Reasoning, Content)
        ]
    return {"question": question, "answers": answers}


def adapted(folder: Path, model: Any, prompts: list[list[int]]) -> dict[str, Any]:
    """The model with a random adapter, which lies in `folder` then, under a plan. It stays in the model."""
    torch.manual_seed(0)
    other = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj", "o_proj"]))
    for name, weight in other.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.03)
    other.save_pretrained(folder)
    tokens = [greedy(other, prompt, PLANS["random-llama"]["half"]).new_tokens[0] for prompt in prompts]
    return {"adapter": place(folder), "tokens": tokens}


def greedy(model: Any, prompt: list[int], plan: LayerPlan | None) -> Any:
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": NEW, "eos_token_id": [], "logprobs": True}
    return zigzag.generate(model, [prompt], plan=plan, **options)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
