"""First of two: choose which layers of SmolLM2 stream, and write what vLLM needs: the plan, and the model as a folder.

python examples/vllm/plan.py out/served         in zigzag's environment: pip install 'zigzag-attention[all]'
"""

import argparse
import json
from pathlib import Path

import zigzag
from zigzag.measuring.prompts import passkey_prompts
from zigzag.models.folder import save_folder
from zigzag.serving.groups import told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num-full", type=int, default=10)
    options = parser.parse_args()

    model, tokenizer = zigzag.load_model("smollm2")
    seen = passkey_prompts(tokenizer, 1_000, count=3, seed=0)
    scores = zigzag.calibrate(model, tokenizer, method="gate_gradient", sink=16, recent=112, prompts=seen)
    plan = zigzag.make_plan(scores, num_full=options.num_full)

    if not (options.folder / "model").exists():
        save_folder(model, tokenizer, options.folder / "model")
    plan.save(options.folder / "plan.json")
    (question,) = passkey_prompts(tokenizer, 1_800, count=1, seed=100)  # a number, hidden far from the end
    asked = {"prompt": question.prompt_ids, "key": str(question.key)}
    (options.folder / "question.json").write_text(json.dumps(asked), encoding="utf-8")
    print("layers:", plan.map())
    print("in vLLM:", told(plan, 2_048, 32, 512))


if __name__ == "__main__":
    main()
