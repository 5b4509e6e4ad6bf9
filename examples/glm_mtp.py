"""GLM-4.5 with its multi-token-prediction layer: drafts from the model's own states, and the thinking mode.

    python examples/glm_mtp.py 5204 2233 5142 9359

tiny-glm ships with zigzag and was trained to add; with a folder of GLM-4.5 only --model changes.
"""

import argparse

from transformers import AutoTokenizer

import zigzag
from zigzag.chat.reasoning import Content, Reasoning, parse
from zigzag.chat.thinking import ThinkingBudget, chat_prompt
from zigzag.generation.drafting import MtpDrafter
from zigzag.models import tiny_glm


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("numbers", type=int, nargs="*", default=[5204, 2233, 5142, 9359])
    options.add_argument("--model", help="folder of a GLM-4.5 checkpoint with its MTP layer")
    options.add_argument("--budget", type=int, default=100, help="tokens of thinking before it must end")
    given = options.parse_args()

    # transformers' model, and the layer that transformers leaves out.
    model, mtp = zigzag.load(given.model or "tiny-glm", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(given.model or tiny_glm.folder())
    question = f"What is {'+'.join(map(str, given.numbers))}?"
    prompt = chat_prompt(tokenizer, [{"role": "user", "content": question}], thinking=True)

    def ask(drafter=None):
        return zigzag.generate(
            model,
            [prompt],
            drafter=drafter,
            temperature=0,
            max_new_tokens=given.budget + 28,
            logits_processor=ThinkingBudget.of(tokenizer, given.budget),
        )

    plain, fast = ask(), ask(MtpDrafter(mtp, stop=3))
    assert fast.new_tokens == plain.new_tokens  # drafts change how fast, not what

    text = tokenizer.decode(fast.new_tokens[0], skip_special_tokens=True)
    events = parse(text, thinking=True)
    for kind in (Reasoning, Content):
        print(f"{kind.__name__.lower()}: {''.join(e.text for e in events if isinstance(e, kind)).strip()}")
    print(f"forwards: {plain.statistics.forwards} without drafts, {fast.statistics.forwards} with them")
    print(fast.statistics)


if __name__ == "__main__":
    main()
