"""Sums of several numbers, with the thinking that finds them column by column, and without."""

from dataclasses import dataclass

import numpy as np

from zigzag.measuring.corpus import is_held_out


@dataclass(frozen=True)
class Sum:
    """The numbers to be added, all of equally many digits."""

    numbers: tuple[int, ...]

    @property
    def question(self) -> str:
        return "+".join(map(str, self.numbers))

    @property
    def answer(self) -> str:
        return str(sum(self.numbers))

    @property
    def thinking(self) -> str:
        """A line a column, the lowest first: its number, the carry, then each digit added to what there is.

        >>> print(Sum((58, 67)).thinking)
        1:0+8=8+7=15
        2:1+5=6+6=12
        """
        carry, lines = 0, []
        for column in range(len(str(self.numbers[0]))):
            total, line = carry, f"{column + 1}:{carry}"
            for number in self.numbers:
                digit = number // 10**column % 10
                total += digit
                line += f"+{digit}={total}"
            lines.append(line)
            carry = total // 10
        return "\n".join(lines)


def draw_sum(rng: np.random.Generator, operands: int, digits: int, *, held_out: bool) -> Sum:
    """A sum that is, or is not, for evaluation only."""
    while True:
        drawn = rng.integers(10 ** (digits - 1), 10**digits, size=operands)
        made = Sum(tuple(int(number) for number in drawn))
        if is_held_out(made.question) == held_out:
            return made
