"""How many examples are drawn, and from which seed."""

from collections.abc import Callable

from zigzag.conformance.arrays import interpreted

PROFILES = {"dev": 1, "ci": 4, "gpu": 2}  # examples, as multiples of what each test has
USUAL = 40  # examples of a test that does not say how many


class Effort:
    """times: multiple of a test's own number; most: instead of it."""

    times: int = 1
    most: int | None = None


def examples(backend: str, most: int, least: int = 3) -> int:
    """How many examples to draw on the backend where `most` are wanted at times 1; where kernels are interpreted an
    eighth of them, but not fewer than `least`."""
    count = Effort.most or most * Effort.times
    return max(min(least, count), count // 8) if interpreted(backend) else count


def drawn(backend: str, most: int, check: Callable, *, least: int = 3) -> None:
    """Runs `check(data)` on drawn examples, as many as suit the backend; `data.draw` takes a strategy."""
    import hypothesis
    from hypothesis import strategies as st

    hypothesis.settings(max_examples=examples(backend, most, least))(hypothesis.given(data=st.data())(check))()


def prepare(profile: str, most: int | None, *, seeded: bool) -> None:
    """Set for the whole process. The same examples come each time, unless a seed was given."""
    import hypothesis

    Effort.times, Effort.most = PROFILES[profile], most
    slow = [hypothesis.HealthCheck.too_slow] if profile == "gpu" else []  # kernels are compiled for each new shape
    hypothesis.settings.register_profile(
        "zigzag",
        deadline=None,
        derandomize=not seeded,
        database=None,
        max_examples=most or USUAL * PROFILES[profile],
        print_blob=True,
        report_multiple_bugs=False,
        suppress_health_check=slow,
    )
    hypothesis.settings.load_profile("zigzag")
