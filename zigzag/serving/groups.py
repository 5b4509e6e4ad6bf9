"""How layers share the blocks of a paged cache, and what a plan saves there.

vLLM gives blocks to *groups* of layers, all of one size g, since a block holds g layers' keys and values of some
tokens; a group that has fewer is padded. It makes groups of the layers whose specs are equal, and takes the size of the
smallest such set, or of the largest where that is less than 1.5 times as much. So 13 full layers beside 17 streaming
ones would be padded to 17. Streaming layers need not be one set: cut into several, they decide g. docs/serving.md has
an example.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from zigzag.plans.layers import LayerPlan
from zigzag.plans.window import one_window

ONE_WINDOW = "its groups are made for one kind of streaming layers: serve a plan with one window (make_plan)"
PADDED = 1.1  # most pages that a plan may cost over those of its layers alone


@dataclass(frozen=True)
class Use:
    """Blocks of `block` tokens that a layer needs for one row: full, and streaming at most."""

    full: int
    streaming: int

    @classmethod
    def of(cls, tokens: int, block: int, sink: int, recent: int, chunk: int) -> "Use":
        """tokens: of a row; chunk: most that one forward computes of it.

        A streaming layer holds the sinks, the window of the first token that is computed next, and what is under way;
        one block more, since a window seldom begins where a block does.
        """
        full = -(-tokens // block)
        return cls(full, min(full, -(-sink // block) + -(-(recent - 1 + chunk) // block) + 1))


@dataclass(frozen=True)
class Grouping:
    """A way to cut the streaming layers into sets, and what becomes of it.

    parts: layers of each set; size: g; full, streaming: groups of each kind; pages: layers' blocks for one row
    """

    parts: tuple[int, ...]
    size: int
    full: int
    streaming: int
    pages: int

    @property
    def groups(self) -> int:
        return self.full + self.streaming

    def part_of(self, index: int) -> int:
        """Which set the streaming layer with this index, among the streaming ones, belongs to."""
        for part, count in enumerate(self.parts):
            if index < count:
                return part
            index -= count
        raise IndexError(index)


def group_size(sets: list[int]) -> int:
    """What vLLM makes of sets of layers with equal specs."""
    return max(sets) if max(sets) < 1.5 * min(sets) else min(sets)


def grouping(num_full: int, num_streaming: int, use: Use) -> Grouping:
    """The fewest groups whose pages are at most `PADDED` times those of the layers alone, else the fewest pages."""
    ideal = num_full * use.full + num_streaming * use.streaming
    found = [_made(num_full, parts, use) for parts in _cuts(num_streaming)]
    good = [each for each in found if each.pages <= PADDED * ideal]
    if good:
        return min(good, key=lambda each: (each.groups, each.pages, len(each.parts)))
    return min(found, key=lambda each: (each.pages, each.groups))


def of_plan(plan: LayerPlan, tokens: int, block: int, chunk: int) -> tuple[Grouping, Use]:
    """The grouping for rows of up to `tokens` tokens, and what each layer uses; for the last two see `Use.of`.

    Raises PlanError for a plan with windows of their own.
    """
    window = one_window("vLLM", plan, ONE_WINDOW)
    use = Use.of(tokens, block, window.sink, window.recent, chunk)
    return grouping(plan.num_full, plan.num_layers - plan.num_full, use), use


def told(plan: LayerPlan, tokens: int, block: int, chunk: int) -> str:
    """What is chosen, why, and how many more rows fit."""
    if not plan.streams:
        return "all layers are full: nothing changes"
    chosen, use = of_plan(plan, tokens, block, chunk)
    alone = plan.num_full * use.full + (plan.num_layers - plan.num_full) * use.streaming
    without = plan.num_layers * use.full
    return (
        f"{plan.num_full} of {plan.num_layers} layers are full: blocks of {chosen.size} layers, groups of full ones "
        f"{chosen.full}, of streaming ones {chosen.streaming}; a row of {tokens:,} tokens takes {chosen.pages:,} pages "
        f"of one layer and {block} tokens ({alone:,} without padding), without a plan {without:,}: "
        f"{without / chosen.pages:.2f} times as many rows fit"
    )


def _cuts(count: int) -> Iterator[tuple[int, ...]]:
    """One set, or a small one beside the rest, or sets of one size with what is left over in the last of them."""
    if count:
        yield (count,)
    for size in range(1, count // 2 + 1):
        yield (size, count - size)
        many = count // size
        yield (*[size] * (many - 1), count - size * (many - 1))


def _made(num_full: int, parts: tuple[int, ...], use: Use) -> Grouping:
    size = group_size([*([num_full] if num_full else []), *parts])
    full, streaming = -(-num_full // size), sum(-(-part // size) for part in parts)
    return Grouping(parts, size, full, streaming, size * (full * use.full + streaming * use.streaming))
