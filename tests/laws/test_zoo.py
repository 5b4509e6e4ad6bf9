"""Right procedures pass the suite, and every mistake of the zoo is caught by it."""

from collections.abc import Mapping
from fractions import Fraction

import pytest
from laws.procedures import (
    BINARY,
    CHAINS,
    EARLY_STOP,
    RIGHT,
    THREE,
    TOP_TWO,
    Deviation,
    Procedure,
    Task,
    by_rule,
    check_lossless,
    distance,
    law_of,
    steady,
)
from laws.tables import first_token, fractions
from laws.zoo import ZOO

from zigzag.reference import RULES, chain, expected_accepted

OPTIONS = {"relaxed": {"top_n": 2}, "top_k": {"k": 2}, "lenient": {"lenience": Fraction(1, 2)}}
LOSSY = {
    name: by_rule(rule.tables, rule.walk, **OPTIONS.get(name, {}))
    for name, rule in RULES.items()
    if rule.only_greedy or not rule.lossless
}


def uncaught(procedures: Mapping[str, tuple[Procedure, list[Task]]]) -> list[str]:
    """The names of those that pass the suite."""
    names = []
    for name, (procedure, tasks) in procedures.items():
        try:
            check_lossless(procedure, tasks)
        except Deviation:
            continue
        names.append(name)
    return names


@pytest.mark.parametrize("name", RIGHT)
def test_right_procedures_pass(name: str) -> None:
    check_lossless(*RIGHT[name])


@pytest.mark.parametrize("name", ZOO)
def test_mistakes_are_caught(name: str) -> None:
    assert uncaught({name: ZOO[name]}) == []


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_rules_are_caught(name: str) -> None:
    assert uncaught({name: (LOSSY[name], CHAINS)}) == []


def test_a_right_procedure_in_the_zoo_would_be_noticed() -> None:
    some = {name: ZOO[name] for name in list(ZOO)[:3]}
    assert uncaught({**some, "residual": RIGHT["residual"]}) == ["residual"]


def test_only_deviations_count_as_caught() -> None:
    """A mistake that merely crashes proves nothing about the suite."""

    def crashes(*_: object) -> tuple[int, ...]:
        raise AssertionError("a failure of its own")

    with pytest.raises(AssertionError, match="of its own"):
        uncaught({"crashes": (crashes, CHAINS)})


def test_the_zoo_is_explained() -> None:
    assert len(ZOO) >= 35
    assert all(procedure.__doc__ for procedure, _ in ZOO.values())
    assert not {procedure for procedure, _ in ZOO.values()} & {procedure for procedure, _ in RIGHT.values()}


# --- What of the suite each subtle mistake needs.


@pytest.mark.parametrize("name", ["coins_by_position", "block_coins_by_position"])
def test_reused_coins_need_a_second_round(name: str) -> None:
    procedure, tasks = ZOO[name]
    check_lossless(procedure, [task for task in tasks if task.rounds == 1])


def test_the_token_residual_needs_three_tokens_and_context() -> None:
    procedure, _ = ZOO["block_with_token_residual"]
    for length in (1, 2, 3):
        assert distance(procedure, steady("binary", BINARY, chain(length))) == 0
    assert distance(procedure, CHAINS[4]) > 0


@pytest.mark.parametrize("name", ["zero_accepted", "zero_drawn"])
def test_forged_tokens_need_a_coin_of_zero(name: str) -> None:
    procedure, tasks = ZOO[name]
    assert all(distance(procedure, task) == 0 for task in tasks)
    with pytest.raises(Deviation, match=r"when coin .* is 0"):
        check_lossless(procedure, tasks)


def test_zero_accepted_with_coin_zero_in_full() -> None:
    """p = (0, 1), q = (1/2, 1/2): token 0 comes out only with <= and only at 0."""
    task = steady("zero", (fractions("1/2", "1/2"), fractions("0", "1")), chain(1))
    coin = (0, 0, "verify")
    assert first_token(law_of(ZOO["zero_accepted"][0], task, zero=coin)) == fractions("1/2", "1/2")
    assert first_token(law_of(RIGHT["residual"][0], task, zero=coin)) == fractions("0", "1")


# --- Numbers.


@pytest.mark.parametrize(
    ("name", "task", "law", "variation"),
    [
        ("residual_left_out", steady("", THREE, chain(1)), ("7/20", "39/100", "13/50"), "3/20"),
        ("fresh_sample_on_mismatch", steady("", THREE, chain(1)), ("91/200", "303/1000", "121/500"), "9/200"),
        ("raw_row_for_truncated_draft", steady("", TOP_TWO, chain(1)), ("1/2", "1/2"), "1/5"),
        ("softmax_row_for_argmax_draft", steady("", TOP_TWO, chain(1)), ("4/5", "1/5"), "2/5"),
        ("low_confidence_draft_discarded", steady("", EARLY_STOP, chain(1)), ("3/5", "2/5"), "1/10"),
        ("k_seq_without_its_factor", steady("", BINARY, [-1, -1]), ("4/9", "5/9"), "1/9"),
        ("stale_residual_for_the_bonus", steady("", THREE, [-1, -1]), ("1/2", "3/10", "1/5"), "3/100"),
        (
            "stale_residual_for_the_bonus",
            steady("", (fractions("4/5", "1/5"), fractions("3/5", "2/5")), [-1, -1], replacement=False),
            ("3/5", "2/5"),
            "3/25",
        ),
        ("inner_stage_without_residual", steady("", THREE, chain(1)), ("17/40", "69/200", "23/100"), "3/40"),
        ("best_of_all_by_target", steady("", THREE, [-1, -1]), ("51/100", "39/100", "1/10"), "1/10"),
    ],
    ids=lambda value: value if isinstance(value, str) and "_" in value else "",
)
def test_bias(name: str, task: Task, law: tuple[str, ...], variation: str) -> None:
    """The law of the first token, and the distance of all tokens from the target."""
    assert first_token(law_of(ZOO[name][0], task)) == fractions(*law)
    assert distance(ZOO[name][0], task) == Fraction(variation)


@pytest.mark.parametrize(
    ("name", "length", "accepted", "variation"),
    [
        ("block_stops_at_first_failure", 2, "5/9", "1/3"),
        ("block_stops_at_first_failure", 3, "14/27", "1/3"),
        ("block_with_running_product", 2, "25/18", "1/6"),
        ("block_with_running_product", 3, "145/72", "5/24"),
        ("block_with_token_residual", 2, "11/9", "0"),
    ],
)
def test_wrong_block_verification(name: str, length: int, accepted: str, variation: str) -> None:
    """The binary toy (1/3, 2/3) against drafts from (2/3, 1/3)."""
    task = steady("", BINARY, chain(length))
    assert expected_accepted(law_of(ZOO[name][0], task)) == Fraction(accepted)
    assert distance(ZOO[name][0], task) == Fraction(variation)
