"""Score a model's KV heads, choose the layers that stream, and run the model with a cache that is smaller.

python examples/plan_a_model.py --num-full 10 --length 500
"""

import argparse

import torch

import zigzag
from zigzag.measuring.prompts import passkey_prompts

SINK, RECENT = 16, 112  # tokens that a streaming layer keeps


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="smollm2", help="folder, hub id or .gguf file; smollm2 is a small one")
    options.add_argument("--num-full", type=int, default=10, help="layers that keep their whole cache")
    options.add_argument("--length", type=int, default=500, help="tokens of the prompts")
    given = options.parse_args()

    model, tokenizer = zigzag.load_model(given.model)

    # Two prompts to score with, one that the scores have not seen. Each hides a number far from its end.
    *seen, unseen = passkey_prompts(tokenizer, given.length, count=3, seed=0)
    scores = zigzag.calibrate(model, method="gate_gradient", sink=SINK, recent=RECENT, prompts=seen)

    # Exactly so many layers stay full. A plan is a file of a few lines: plan.save(...), LayerPlan.load(...).
    plan = zigzag.make_plan(scores, num_full=given.num_full)
    print(f"layers: {plan.map()}  (F full, s streaming)")
    print(plan.report())

    # From here on the model runs under the plan; all else is transformers as you know it.
    zigzag.attach(model, plan)
    ids = torch.tensor([unseen.prompt_ids])
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=8,
        do_sample=False,
        return_dict_in_generate=True,
        pad_token_id=tokenizer.eos_token_id,
    )
    print(f"hidden: {unseen.key}  continued: {tokenizer.decode(made.sequences[0, ids.shape[1] :])!r}")

    # The last token was never fed, so the cache holds one token less than the text.
    tokens, config = made.sequences.shape[1] - 1, model.config
    size = {"head_size": config.hidden_size // config.num_attention_heads, "itemsize": model.dtype.itemsize}
    print(f"cache: {zigzag.cache_bytes(made.past_key_values)} bytes after {tokens} tokens")
    print(f"on paper: {plan.kv_bytes(tokens, **size)} bytes; full attention: ", end="")
    print(f"{plan.full_kv_bytes(tokens, num_kv_heads=config.num_key_value_heads, **size)}")
    zigzag.detach(model)


if __name__ == "__main__":
    main()
