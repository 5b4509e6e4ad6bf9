"""Tokens become text as soon as it is certain, however they are cut, at a cost that does not grow."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_tokenizer

from zigzag.chat.reasoning import Detokenizer

BYTES = st.binary(max_size=40).map(list)  # with characters that are cut, and bytes that are none
SPECIAL = 300  # decodes to nothing
EURO = list("€".encode())


def decode(tokens: list[int]) -> str:
    """One token a byte; special tokens are skipped, as `skip_special_tokens=True` does."""
    return bytes(token for token in tokens if token != SPECIAL).decode(errors="replace")


def sentence(tokens: list[int]) -> str:
    """As SentencePiece decodes: words begin with a blank, but not the first one."""
    return "".join({0: "", 1: " a", 2: " b", 3: " "}[token] for token in tokens).removeprefix(" ")


def fed(tokens: list[int], cuts: list[int] = (), decode=decode) -> list[str]:
    stream = Detokenizer(decode)
    out = [stream.feed(tokens[a:b]) for a, b in zip([0, *cuts], [*cuts, len(tokens)], strict=True)]
    return [*out, stream.finish()]


@given(text=st.text(), data=st.data())
def test_tokens_become_text(text: str, data) -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text).input_ids
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=8)))
    out = fed(ids, cuts, tokenizer.decode)
    assert "".join(out) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in out)


@settings(max_examples=500)
@given(
    tokens=st.lists(st.sampled_from([SPECIAL, *EURO, 0xEF, 0xBF, 0xBD, 0xF0, 0x9F, 0x98, 0x80, 65]) | st.just(SPECIAL))
)
def test_undecodable_and_skipped_tokens_change_nothing(tokens: list[int]) -> None:
    """What is undecodable for ever, and tokens that decode to nothing, in any order."""
    assert "".join(fed(tokens)) == "".join(fed(tokens, list(range(len(tokens))))) == decode(tokens)


@given(pieces=st.lists(BYTES | st.integers(1, 40).map(lambda count: [SPECIAL] * count), max_size=6))
def test_any_bytes_between_skipped_tokens(pieces: list[list[int]]) -> None:
    tokens = [token for piece in pieces for token in piece]
    assert "".join(fed(tokens)) == decode(tokens)


def test_a_long_run_of_skipped_tokens_keeps_what_stands_before_it() -> None:
    for count in (1, 7, 8, 9, 50):
        assert "".join(fed([1, *[0] * count, 2, 3, 1], decode=sentence)) == "a b  a"  # a blank each
        assert "".join(fed([*EURO[:1], *[SPECIAL] * count, *EURO[1:], 65])) == "€A"


def test_characters_that_are_open_when_much_waits() -> None:
    """An open character of 3 bytes under a decoder that ignores it; one that began among undecodable bytes."""
    stray, skipped = [EURO[2]] * 4, [SPECIAL] * 3
    tokens = [*[SPECIAL] * 5, *"😀".encode(), 65]
    assert "".join(fed(tokens, decode=lambda ids: decode(ids).replace("\ufffd", ""))) == "😀A"
    tokens = [*stray, EURO[0], *skipped, *EURO[1:], *skipped * 3, 65]
    assert "".join(fed(tokens)) == decode(tokens) == "\ufffd\ufffd\ufffd\ufffd€A"


def test_text_comes_as_soon_as_it_is_certain() -> None:
    assert fed([65, *EURO, SPECIAL, 66], [1, 2, 3, 4, 5]) == ["A", "", "", "€", "", "B", ""]
    assert fed(EURO[:2]) == ["", "\ufffd"]  # at the end a cut character is one
    assert fed([EURO[1]] * 20 + [65])[0] == "\ufffd" * 20 + "A"  # is not held for ever
    stream = Detokenizer(decode)
    assert (stream.feed(EURO[:2]), stream.finish(), stream.feed([65]), stream.finish()) == ("", "\ufffd", "A", "")


def test_at_most_16_tokens_are_decoded_at_once() -> None:
    """A token with those around it, in runs of what is undecodable or decodes to nothing, after text and after none."""
    longest = 0

    def counting(tokens: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return decode(tokens)

    for unit in ([EURO[1]], [SPECIAL], EURO[:1], [*[SPECIAL] * 7, 65], [*[EURO[1]] * 7, 65]):
        for before in ([], [65], EURO):
            fed([*before, *unit * 40], decode=counting)
    assert longest == 16


def decoded(tokens: list[int]) -> int:
    """How many tokens were decoded, in all calls."""
    seen: list[int] = []

    def counting(tokens: list[int]) -> str:
        seen.append(len(tokens))
        return decode(tokens)

    fed(tokens, decode=counting)
    return sum(seen)


@pytest.mark.parametrize(
    "unit", [[65], [SPECIAL], EURO, [EURO[1]], [*[SPECIAL] * 20, 65], [EURO[0], SPECIAL], list("😀".encode())]
)
def test_cost_is_linear(unit: list[int]) -> None:
    """Counted, not timed: 10 times the tokens, 10 times the decoding, and not much of it."""
    few, many = (decoded(unit * (count // len(unit))) for count in (400, 4000))
    assert many <= 10.5 * few and many <= 24 * 4000


def test_a_quadratic_cost_is_noticed() -> None:
    seen = [sum(range(count)) for count in (400, 4000)]  # what decoding everything again would count
    assert not (seen[1] <= 10.5 * seen[0]) and not (seen[1] <= 24 * 4000)
