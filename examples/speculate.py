"""Decode with drafts: the tokens of plain greedy decoding, in fewer forwards of the model.

python examples/speculate.py --new-tokens 48
"""

import argparse

import torch

import zigzag
from zigzag.generation.drafting import LookupDrafter, streaming_drafter

TEXT = """\
class Point:
    def __init__(self, x, y, z):
        self.x = x
        self.y = y
        self.z = z

    def __add__(self, other):
        return Point(self.x + other.x, self.y + other.y, self.z + other.z)

    def __sub__(self, other):
        return"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="tiny-glm", help="folder, hub id, .gguf file, or smollm2")
    options.add_argument("--new-tokens", type=int, default=48)
    given = options.parse_args()

    model, tokenizer = zigzag.load_model(given.model)
    ids = tokenizer(TEXT, return_tensors="pt").input_ids

    # What must come out: transformers' own greedy decoding.
    plain = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=given.new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.eos_token_id,
    )[0, ids.shape[1] :].tolist()
    print(tokenizer.decode(plain))

    drafters = {
        # Copies what followed the last tokens the last time they came: costs nothing, pays where text repeats.
        "lookup": LookupDrafter(8),
        # The model itself with every layer streaming (here 4 first and 28 last tokens): needs no second model.
        "streaming": streaming_drafter(model.config.num_hidden_layers, sink=4, recent=28, stop=3),
    }
    for name, drafter in drafters.items():
        made = zigzag.generate(model, ids, drafter=drafter, temperature=0, max_new_tokens=given.new_tokens)
        same = made.new_tokens[0] == plain
        print(f"\n{name}: {'the same' if same else 'OTHER'} tokens")
        print(made.statistics)  # docs/generation.md has the glossary
        if not same:
            raise SystemExit("greedy decoding with drafts must give the tokens of greedy decoding")


if __name__ == "__main__":
    main()
