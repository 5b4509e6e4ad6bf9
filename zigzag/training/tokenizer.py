"""A byte-level BPE with GLM-4.5's chat template, its thinking and direct modes.

Every digit is a token of its own. `<think>` and `</think>` are tokens but not special ones: decoding keeps them, so
that `zigzag.chat.reasoning` sees them, as with GLM-4.5's own tokenizer.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zigzag.reference.errors import ModelError

END, USER, ASSISTANT = "<|endoftext|>", "<|user|>", "<|assistant|>"
SPECIAL = (END, "[gMASK]", "<sop>", "<|system|>", USER, ASSISTANT)
TAGS = ("<think>", "</think>", "/nothink")
STOPS = (END, USER)  # a turn ends with the role of the next
CHAT_TEMPLATE = """\
[gMASK]<sop>
{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}
<|user|>
{{ m.content }}
{%- if enable_thinking is defined and not enable_thinking and not m.content.endswith('/nothink') -%}
/nothink
{%- endif -%}
{%- elif m.role == 'assistant' -%}
{%- set content = m.content.split('</think>')[-1].lstrip('\\n') -%}
{%- set reasoning = m.reasoning_content or '' -%}
{%- if '</think>' in m.content and not reasoning -%}
{%- set reasoning = m.content.split('</think>')[0].split('<think>')[-1] -%}
{%- endif -%}
<|assistant|>
<think>{{ reasoning.strip('\\n') if loop.index0 > ns.last else '' }}</think>
{{ content }}
{%- elif m.role == 'system' -%}
<|system|>
{{ m.content }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|assistant|>
{%- if enable_thinking is defined and not enable_thinking -%}
{{ '\\n<think></think>' }}
{%- endif -%}
{%- endif -%}
"""


def train_tokenizer(texts: Iterable[str], size: int) -> Any:
    """A tokenizer of transformers' kind with at most `size` tokens, trained on `texts`.

    Raises ModelError if `size` leaves no room for the 256 bytes and the tokens with a meaning.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    least = 256 + len(SPECIAL) + len(TAGS)
    if size < least:
        raise ModelError(f"train_tokenizer: size must be at least {least}, got {size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(TAGS),
        special_tokens=list(SPECIAL),
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return _wrapped(tokenizer)


def read_tokenizer(folder: str | Path) -> Any:
    """The tokenizer that was saved in a folder; ModelError if there is none or it is damaged."""
    from tokenizers import Tokenizer

    try:
        return _wrapped(Tokenizer.from_file(str(Path(folder) / "tokenizer.json")))
    except Exception as error:  # tokenizers raises plain exceptions
        raise ModelError(f"{folder}: a whole tokenizer.json is needed: {error}") from error


def _wrapped(tokenizer: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def stop_ids(tokenizer: Any) -> list[int]:
    """The tokens that end what the model writes."""
    return [tokenizer.get_vocab()[token] for token in STOPS]
