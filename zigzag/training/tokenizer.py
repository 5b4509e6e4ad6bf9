"""A byte-level BPE with GLM-4.5's chat template, its thinking and direct modes.

Every digit is a token of its own. `<think>` and `</think>` are tokens but not special ones: decoding keeps them, so
that `zigzag.chat.reasoning` sees them, as with GLM-4.5's own tokenizer.
"""

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from zigzag.models import tiny_glm
from zigzag.reference.errors import ModelError

END, USER, ASSISTANT = "<|endoftext|>", "<|user|>", "<|assistant|>"
SPECIAL = (END, "[gMASK]", "<sop>", "<|system|>", USER, ASSISTANT)
TAGS = ("<think>", "</think>", "/nothink")
STOPS = (END, USER)  # a turn ends with the role of the next


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
    wrapped.chat_template = (files(tiny_glm) / "chat_template.jinja").read_text(encoding="utf-8")
    return wrapped


def stop_ids(tokenizer: Any) -> list[int]:
    """The tokens that end what the model writes."""
    return [tokenizer.get_vocab()[token] for token in STOPS]
