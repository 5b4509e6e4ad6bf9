"""Which drafter next: on rounds with a clock of their own, where what each costs and gives is known."""

import random
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import pytest

from zigzag.generation.drafting.bandit import (
    ACCIDENT,
    CREDIT,
    KEPT_PLAIN,
    MEASURED,
    NOTHING,
    REVISIT,
    WARM_PLAIN,
    Acceptance,
    Bandit,
    Choice,
    Times,
)

BEGINNING = WARM_PLAIN + MEASURED


class Arm(NamedTuple):
    """A drafter. seconds of a round by the drafts' length, one without drafts takes 1; catching_up: for each token."""

    lengths: tuple[int, ...]
    seconds: Callable[[int], float]
    catching_up: float = 0.0


class Text(NamedTuple):
    """Up to token `until`: how often each arm's drafts are accepted."""

    until: int
    accepted: tuple[float, ...]


def by_token(each: float) -> Callable[[int], float]:
    return lambda length: 1 + each * length


CPU = Arm((3, 10), by_token(0.12), 0.002), Arm((1, 3), by_token(0.3), 0.02)
GPU = Arm((3, 10), by_token(0.01), 0.0001), Arm((1, 3), by_token(0.12), 0.001)
MACHINES = {"CPU": CPU, "GPU": GPU}
ALWAYS = 10**9


def decoded(
    bandit: Bandit, arms: tuple[Arm, ...], texts: list[Text], *, tokens: int = 1024, seed: int = 0, noise: float = 0.08
) -> float:
    """Seconds a token, without the noise that the bandit is told. One round in 300 is an accident."""
    rng, done, spent = random.Random(seed), 0, 0.0
    told, before = [0] * len(arms), NOTHING
    bandit.begin(1)
    while done < tokens:
        choice = bandit.choose(100 + done)
        shares = next(text.accepted for text in texts if done < text.until)
        seconds, accepted = 1.0, 0
        if choice != NOTHING:
            arm, share = arms[choice.drafter], shares[choice.drafter]
            missed = 100 + done - told[choice.drafter] if before.drafter != choice.drafter else 0
            seconds, told[choice.drafter] = arm.seconds(choice.length) + arm.catching_up * missed, 100 + done
            while accepted < choice.length and rng.random() < share:
                accepted += 1
        before, spent, done = choice, spent + seconds, done + accepted + 1
        bandit.gave([choice.length], [accepted])
        bandit.took(seconds * max(0.5, rng.gauss(1, noise)) + (rng.random() < 1 / 300) * rng.choice([3, 10]))
    return spent / done


def fresh(arms: tuple[Arm, ...]) -> Bandit:
    return Bandit([arm.lengths for arm in arms])


@pytest.mark.parametrize("accepted", [(0.02, 0.1), (0.2, 0.3), (0.0, 0.0)], ids=["little", "some", "nothing"])
@pytest.mark.parametrize("machine", MACHINES)
def test_never_slower_than_without_drafts(machine: str, accepted: tuple[float, float]) -> None:
    """Where drafts cost more than they give: at most 3% lost in 1,024 tokens, in the middle of five calls."""
    arms = MACHINES[machine]
    for first in range(0, 15, 5):
        taken = [decoded(fresh(arms), arms, [Text(ALWAYS, accepted)], seed=first + call) for call in range(5)]
        assert median(taken) < 1.03


def one(arm: Arm, share: float, length: int) -> float:
    """Seconds a token with this choice alone."""
    return arm.seconds(length) / sum(share**n for n in range(length + 1))


@pytest.mark.parametrize("accepted", [(0.93, 0.5), (0.02, 0.75), (0.5, 0.7)])
@pytest.mark.parametrize("machine", MACHINES)
def test_near_the_best_choice(machine: str, accepted: tuple[float, float]) -> None:
    arms = MACHINES[machine]
    best = min(one(arm, share, n) for arm, share in zip(arms, accepted, strict=True) for n in arm.lengths)
    taken = [decoded(fresh(arms), arms, [Text(ALWAYS, accepted)], seed=seed) for seed in range(7)]
    assert median(taken) < 1.15 * best + 0.02


@pytest.mark.parametrize("machine", MACHINES)
def test_follows_the_text(machine: str) -> None:
    """Code and then prose, or prose and then code: half of the text is much faster, the other not slower."""
    arms, code, prose = MACHINES[machine], (0.95, 0.6), (0.02, 0.1)
    for first, second in ((code, prose), (prose, code)):
        texts = [Text(512, first), Text(ALWAYS, second)]
        taken = [decoded(fresh(arms), arms, texts, seed=seed) for seed in range(7)]
        assert median(taken) < 0.78


def test_a_second_text_is_decoded_with_what_the_first_one_taught() -> None:
    """Only the rounds that measure decoding without drafts stand before it; a machine half as fast changes nothing."""
    bandit, texts = fresh(CPU), [Text(ALWAYS, (0.95, 0.1))]
    decoded(bandit, CPU, texts)
    slower = tuple(Arm(arm.lengths, lambda n, arm=arm: 2 * arm.seconds(n)) for arm in CPU)
    usual = bandit.records[0].times[10].usual
    bandit.begin(1)
    for _ in range(BEGINNING):
        assert bandit.choose(100) == NOTHING
        bandit.gave([0], [0])
        bandit.took(2.0)
    assert bandit.records[0].times[10].usual == pytest.approx(2 * usual, rel=0.2)
    assert bandit.choose(100) == Choice(0, 10) and slower[0].seconds(10) == pytest.approx(4.4)


def rounds(bandit: Bandit, count: int, took: Callable[[Choice], float], share: float = 1.0) -> list[Choice]:
    """What is chosen where drafts are accepted whole (share 1) or never (0)."""
    found = []
    for _ in range(count):
        found.append(bandit.choose(10))
        bandit.gave([found[-1].length], [int(found[-1].length * share)])
        bandit.took(took(found[-1]))
    return found


def test_the_first_rounds() -> None:
    """Without drafts until these are measured; then the drafter's shortest length, and on to what is better."""
    bandit = Bandit([(2, 6)])
    bandit.begin(1)
    found = rounds(bandit, 20, lambda choice: 1 + 0.1 * choice.length)
    assert found[:BEGINNING] == [NOTHING] * BEGINNING and found[BEGINNING:][:2] == [Choice(0, 2)] * 2
    assert found[-1] == Choice(0, 6)


@pytest.mark.parametrize("slow", [1, 2])
def test_first_uses_do_not_count(slow: int) -> None:
    """A step that is compiled, or captured in its second round, is no reason to leave a drafter."""
    bandit, uses = Bandit([(3,)]), []

    def took(choice: Choice) -> float:
        uses.append(choice)
        return 500.0 if choice != NOTHING and uses.count(choice) == slow else 1.0

    bandit.begin(1)
    found = rounds(bandit, 40, took)
    assert found[BEGINNING:] == [Choice(0, 3)] * (40 - BEGINNING)
    assert bandit.records[0].times[3].usual == 1


def test_accidents_are_cut() -> None:
    times = Times()
    for seconds in (1.0, 1.2, 50.0, 0.8):
        times.add(seconds)
    assert times.usual == pytest.approx((1 + 1.2 + ACCIDENT * 1.0 + 0.8) / 4)
    times.scale(2)
    assert times.usual == pytest.approx(2 * (1 + 1.2 + ACCIDENT * 1.0 + 0.8) / 4)
    first = Times()
    first.add(100.0)
    first.add(1.0)
    assert first.usual == pytest.approx((ACCIDENT + 1) / 2)  # of two the smaller one is believed
    assert Times().usual is None and Times().usual_or(3.0) == 3 and first.usual_or(3.0) == first.usual


def test_acceptance_by_hand() -> None:
    """Two rows with 3 and 1 drafts: 1 and 1 accepted; then a round of one length for both, half faded."""
    acceptance = Acceptance(3, memory=2)  # a round counts half of the next one
    acceptance.add(1, [3, 1], [1, 1])
    assert (acceptance._tested, acceptance._passed) == ([1, 0.5, 0], [1, 0, 0])
    acceptance.add(2, [2, 2], [0, 2])
    assert (acceptance._tested, acceptance._passed) == ([1.5, 0.75, 0], [1.0, 0.5, 0])
    first = (1.0 + 0.5 * 0.8) / 2.0
    second = (0.5 + 0.5 * first) / 1.25
    assert acceptance.tokens(2, 2, 0.8) == pytest.approx(1 + first + first * second)
    assert acceptance.tokens(2, 3, 0.8) == pytest.approx(1 + first + first * second + first * second**2)
    assert acceptance.tokens(500, 1, 0.8) == pytest.approx(1.8) and acceptance.tokens(500, 1, 0.0) == pytest.approx(1)


def test_what_trying_may_cost() -> None:
    """Drafts that are never accepted, and always look hopeful since a round costs little more: the account holds."""
    bandit = Bandit([(4,)], loss=0.02, allowance=3)
    bandit.begin(1)
    found = rounds(bandit, 4000, lambda choice: 1 + 0.05 * choice.length, share=0)
    tried = len(found) - found.count(NOTHING)
    assert tried > 100 and 0.2 * tried <= 3 + 0.02 * 4000 * 1.02 + 2 * 0.2
    without = Bandit([(4,)], loss=0, allowance=3)
    without.begin(1)
    later = rounds(without, 2000, lambda choice: 1 + 0.05 * choice.length, share=0)
    assert later[500:].count(NOTHING) == 1500 and later.count(NOTHING) < 2000


def test_gains_are_not_lost_again_without_end() -> None:
    bandit = Bandit([(4,)])
    bandit.begin(1)
    rounds(bandit, 300, lambda choice: 1.0)
    assert bandit.records[0].lost == -CREDIT
    turned = rounds(bandit, 60, lambda choice: 1.0 if choice == NOTHING else 1.5, share=0)
    assert 60 - turned.count(NOTHING) <= 2 * (CREDIT + 4 + 0.01 * 360) + 1


def test_a_drafter_that_catches_up_for_long_stays_away() -> None:
    """Half a round for each token that it has missed: known once it came back, and too much from then on."""
    arms = (Arm((4,), by_token(0.05), 0.5),)
    bandit = fresh(arms)
    decoded(bandit, arms, [Text(ALWAYS, (0.3,))], tokens=6000)
    assert bandit.records[0].catching_up == pytest.approx(0.5, rel=0.3)
    # What it gives a round is worth little: it is tried for a while, and then no more.
    assert bandit.chosen[Choice(0, 4)] < 0.4 * sum(bandit.chosen.values())
    assert decoded(fresh(arms), arms, [Text(ALWAYS, (0.0,))], tokens=4000, seed=3) < 1.03


def test_without_drafts_is_measured_again() -> None:
    """While a drafter is best; a machine that was slow only at first is found out."""
    bandit = Bandit([(1,)])
    bandit.begin(1)
    rounds(bandit, BEGINNING, lambda choice: 3.0)
    found = rounds(bandit, 200, lambda choice: 1.0 if choice == NOTHING else 1.4, share=0.0)
    assert bandit.plain.usual == 1 and found.count(NOTHING) > 185  # drafts cannot take less than none
    good = Bandit([(1,)])
    good.begin(1)
    found = rounds(good, 1000, lambda choice: 1.0)
    assert found.count(NOTHING) == pytest.approx(BEGINNING + 1000 / (REVISIT + 1), abs=2)


def test_when_half_of_the_rows_have_left() -> None:
    bandit = Bandit([(2,)])
    bandit.begin(8)
    rounds(bandit, 30, lambda choice: 4.0)
    bandit.select(5)
    assert bandit.choose(10) == Choice(0, 2)
    bandit.gave([2] * 5, [2] * 5)
    bandit.select(4)  # before the round is over
    bandit.took(4.0)
    assert rounds(bandit, BEGINNING, lambda choice: 2.0) == [NOTHING] * BEGINNING
    assert bandit.plain.usual == 2 and bandit.records[0].times[2].usual == 2
    assert bandit.choose(10) == Choice(0, 2)


def test_rounds_that_begin_late_are_no_measure() -> None:
    """Where rounds without drafts may begin early, the one behind a draft does not: the draft pays for it."""
    bandit = Bandit([(2,)])
    bandit.begin(1)

    def plain(seconds: float, *, rests: bool) -> None:
        assert bandit.choose(10, rests=rests) == NOTHING
        bandit.gave([0], [0])
        bandit.took(seconds)

    plain(1.5, rests=False)
    for _ in range(BEGINNING - 1):
        plain(1.0, rests=True)
    assert bandit.choose(10) == Choice(0, 2) and not bandit.rests(10)  # a draft's outcome decides first
    bandit.gave([2], [0])
    bandit.took(1.2)
    lost = bandit.records[0].lost
    bandit._to_measure = 2
    plain(1.5, rests=False)
    assert bandit.plain.usual == 1.0 and bandit._to_measure == 2
    assert bandit.records[0].lost == pytest.approx(lost + 0.5)
    bandit.choose(10)
    assert bandit.rests(10)
    bandit._to_measure = 0
    assert not bandit.rests(10)  # it would draft
    bandit.gave([0], [0])
    bandit.took(100.0)
    assert bandit.records[0].lost == pytest.approx(lost + 0.5)  # behind a round without a draft nobody pays


def test_rounds_that_go_on_by_themselves_are_the_measure() -> None:
    """Of a choice whose rounds do, the first, which goes one by one, is paid for and not measured."""
    bandit = Bandit([(2,)])
    bandit.begin(1)
    rounds(bandit, BEGINNING, lambda choice: 1.0)
    choice = Choice(0, 2)

    def drafted(seconds: float, onward: bool) -> None:
        assert bandit.choose(10, onward=choice if onward else None) == choice
        bandit.gave([2], [2])
        bandit.took(seconds)

    drafted(3.0, onward=False)  # no measure, as every first one
    for _ in range(4):
        assert bandit.again(choice, 10)
        drafted(1.2, onward=True)
    assert bandit.records[0].times[2].usual == pytest.approx(1.2)
    before = bandit.records[0].lost
    drafted(3.4, onward=False)
    assert bandit.records[0].times[2].usual == pytest.approx(1.2) and bandit.records[0].lost > before
    bandit.retire(0)
    assert not bandit.again(choice, 10)


def test_what_is_out_is_not_chosen() -> None:
    bandit = Bandit([(2,), (3,)])
    bandit.begin(1)
    assert rounds(bandit, 30, lambda choice: 1.0)[-1].drafter == 1
    bandit.retire(1)
    assert {choice.drafter for choice in rounds(bandit, 30, lambda choice: 1.0)} <= {0, -1}
    bandit.begin(1)
    assert rounds(bandit, 30, lambda choice: 1.0)[-1].drafter == 1


def test_a_round_that_nobody_judged_teaches_nothing() -> None:
    bandit = Bandit([(2,)])
    bandit.begin(1)
    for _ in range(KEPT_PLAIN):
        bandit.choose(10)
        bandit.took(1.0)
    assert bandit.plain.usual is None
    bandit.took(1.0)
