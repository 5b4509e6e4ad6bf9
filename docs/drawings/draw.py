"""The drawings of docs/concepts.md, light and dark: `python docs/drawings/draw.py` writes them beside this file.

What they show is computed by the library: masks by `visible`, verdicts by the rules, laws by enumeration, scores and
plans from docs/evidence/results.json.
"""

import argparse
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sheet import PALETTES, Sheet

from zigzag import HeadScores, make_head_plan, make_plan
from zigzag.reference import continued, law, target_law, verify_residual, verify_tree_greedy, visible

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "evidence" / "results.json"
TOKENS = "abc"


def scores() -> HeadScores:
    """SmolLM2's gate gradients, measured for docs/evidence."""
    values = json.loads(RESULTS.read_text(encoding="utf-8"))["scores"]["gate_gradient"]
    return HeadScores(np.array(values), "gate_gradient", sink=16, recent=112)


def heads(palette: dict[str, str]) -> Sheet:
    values = scores().values
    shades = np.sqrt(np.clip(values, 0, None) / values.max())
    sheet = Sheet(700, 130, "Scores of the 30 x 3 KV heads of SmolLM2", palette)
    sheet.text(56, 18, "The stronger the colour, the more a KV head of SmolLM2 needs its full cache")
    for (layer, head), shade in np.ndenumerate(shades):
        x, y = 56 + 21 * layer, 32 + 21 * head
        sheet.box(x, y, 19, 19, "empty")
        sheet.box(x, y, 19, 19, "full", opacity=float(shade))
    _axes(sheet, 32, values.shape)
    sheet.text(56 + 21 * 15, 124, "layer", "faint", at="middle", size=12)
    return sheet


def _axes(sheet: Sheet, top: float, shape: tuple[int, ...]) -> None:
    for layer in range(0, shape[0], 5):
        sheet.text(56 + 21 * layer + 9.5, top + 21 * shape[1] + 12, str(layer), "faint", at="middle", size=11)
    for head in range(shape[1]):
        sheet.text(48, top + 21 * head + 14, f"head {head}", "faint", at="end", size=11)


def plans(palette: dict[str, str]) -> Sheet:
    found = scores()
    by_heads = np.array(make_head_plan(found, num_full_heads=30).heads)
    kinds = make_plan(found, num_full=10, criterion="max").kinds
    by_layers = np.array([[kind == "full"] * found.values.shape[1] for kind in kinds])
    mixed = int(sum(0 < row.sum() < row.size for row in by_heads))
    sheet = Sheet(700, 250, "A head-wise and a layer-exclusive plan with as many full heads", palette)
    told = (
        f"Head by head: the 30 best heads stay full, {mixed} of 30 layers are mixed",
        "Layer-exclusive: 10 of 30 layers stay full, none is mixed",
    )
    for top, full, words in zip((32, 146), (by_heads, by_layers), told, strict=True):
        sheet.text(56, top - 14, words)
        for (layer, head), keeps in np.ndenumerate(full):
            _head(sheet, 56 + 21 * layer, top + 21 * head, bool(keeps))
        _axes(sheet, top, full.shape)
    _key(sheet, 56, 240, "full cache", "first and last tokens only")
    return sheet


def _head(sheet: Sheet, x: float, y: float, keeps: bool) -> None:
    """Full: a filled square; streaming: its two ends alone."""
    if keeps:
        sheet.box(x, y, 19, 19, "full")
        return
    sheet.box(x, y, 19, 19, "empty")
    sheet.box(x, y, 4, 19, "stream")
    sheet.box(x + 13, y, 6, 19, "stream")


def _key(sheet: Sheet, x: float, y: float, full: str, stream: str) -> None:
    sheet.box(x, y - 11, 13, 13, "full")
    sheet.text(x + 20, y, full, "faint", size=12)
    sheet.box(x + 140, y - 11, 13, 13, "stream")
    sheet.text(x + 160, y, stream, "faint", size=12)


def window(palette: dict[str, str]) -> Sheet:
    sheet = Sheet(700, 330, "Which keys a query of a streaming layer sees", palette)
    cases = (("sink = 2, recent = 4", 2, 4, 1), ("in blocks: sink = 4, recent = 8, align = 4", 4, 8, 4))
    for left, (words, sink, recent, align) in zip((56, 358), cases, strict=True):
        places = np.arange(16)
        seen = visible(places, places, sink=sink, recent=recent, align=align)
        sheet.text(left, 18, words)
        _mask(sheet, left, 30, seen, lambda query, key, sink=sink: "full" if key < sink else "stream")
        sheet.text(left + 8 * 16, 30 + 16 * 16 + 16, "key, by position", "faint", at="middle", size=12)
    sheet.text(50, 42, "query 0", "faint", at="end", size=11)
    sheet.text(50, 30 + 16 * 16 - 4, "15", "faint", at="end", size=11)
    _key(sheet, 56, 324, "sinks", "recent tokens, the query's own among them")
    return sheet


def _mask(sheet: Sheet, left: float, top: float, seen: NDArray[np.bool_], colour: Callable[[int, int], str]) -> None:
    for (query, key), sees in np.ndenumerate(seen):
        fill = colour(query, key) if sees else "empty"
        sheet.box(left + 16 * key, top + 16 * query, 14.5, 14.5, fill)


def round_of_drafts() -> tuple[list[int], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], list[int]]:
    """(drafts, q, p, uniforms, emitted) of one round of `residual`: two drafts pass, the third does not."""
    drafts = [1, 0, 2, 1]
    q = np.array([[2, 4, 2], [6, 1, 1], [1, 2, 5], [2, 4, 2]]) / 8
    p = np.array([[2, 4, 2], [4, 2, 2], [4, 3, 1], [3, 3, 2], [2, 2, 4]]) / 8
    uniforms = np.array([0.6, 0.5, 0.7, 0.3, 0.4])
    verdict = verify_residual([drafts], q[None], p[None], uniforms[None])
    return drafts, q, p, uniforms, [int(token) for token in verdict.output_token_ids[0] if token >= 0]


def draft_and_verify(palette: dict[str, str]) -> Sheet:
    drafts, q, p, uniforms, emitted = round_of_drafts()
    accepted = len(emitted) - 1
    sheet = Sheet(700, 300, "One round of draft and verify", palette)
    steps = (
        ("1  A cheap drafter", "proposes tokens"),
        ("2  One forward of the", "target gives p for all"),
        ("3  Each is kept while", "u q(x) < p(x)"),
        ("4  Then one token", "of the target's own"),
    )
    for step, (first, second) in enumerate(steps):
        sheet.text(10, 40 + 62 * step, first)
        sheet.text(10, 57 + 62 * step, second, "faint")
    for place, token in enumerate(drafts):
        x = 190 + 110 * place
        judged = place <= accepted
        sheet.box(x, 28, 34, 30, "empty", edge="rule")
        sheet.text(x + 17, 48, TOKENS[token], at="middle", size=15, bold=True)
        left, right = uniforms[place] * q[place, token], p[place, token]
        _bar(sheet, x, 96, right, "full", f"p = {right:.3g}", judged)
        _bar(sheet, x, 122, left, "stream", f"u q = {left:.3g}", judged)
        said = ("accepted" if place < accepted else "rejected") if judged else "not looked at"
        sheet.text(x, 178, said, "ink" if judged else "faint", bold=place < accepted)
    for place, token in enumerate(emitted):
        x = 190 + 110 * place
        own = place == accepted
        sheet.box(x, 208, 34, 30, "stream" if own else "full")
        sheet.text(x + 17, 228, TOKENS[token], "on", at="middle", size=15, bold=True)
        sheet.text(x, 256, "from max(p - q, 0)" if own else "kept", "faint", size=12)
    sheet.text(190, 286, f"{len(emitted)} tokens for one forward of the target", "faint", size=12)
    return sheet


def _bar(sheet: Sheet, x: float, y: float, share: float, colour: str, words: str, judged: bool) -> None:
    sheet.box(x, y, 88 * share, 9, colour, opacity=1 if judged else 0.3)
    sheet.text(x, y - 3, words, "faint", size=11)


def trees(palette: dict[str, str]) -> Sheet:
    """A tree of six drafts, what each of its nodes sees, and the path that the target's argmaxes take."""
    parents, drafts = [-1, -1, 0, 0, 1, 2], [0, 1, 1, 2, 2, 0]
    best = [0, 2, 0, 0, 1, 0, 1]  # the target's argmax after the text, and after each node
    logits = np.eye(3)[best]
    verdict = verify_tree_greedy([drafts], logits[None], parents=parents)
    emitted = [int(token) for token in verdict.output_token_ids[0] if token >= 0]
    taken, row = set[int](), -1
    for token in emitted[:-1]:
        row = next(node for node, parent in enumerate(parents) if parent == row and drafts[node] == token)
        taken.add(row)
    sheet = Sheet(700, 270, "A tree of drafts and what its nodes see", palette)
    places = [(150, 60), (150, 190), (230, 30), (230, 110), (230, 190), (310, 30)]
    for node, parent in enumerate(parents):
        start = places[parent] if parent >= 0 else (70, 125)
        sheet.line(*start, *places[node], "full" if node in taken else "rule")
    sheet.circle(70, 125, 17, "empty")
    sheet.text(70, 130, "text", at="middle", size=12)
    for node, (x, y) in enumerate(places):
        sheet.circle(x, y, 17, "full" if node in taken else "empty", edge="full" if node in taken else "rule")
        sheet.text(x, y + 5, TOKENS[drafts[node]], "on" if node in taken else "ink", at="middle", size=15, bold=True)
        sheet.text(x + 21, y - 10, str(node), "faint", size=11)
    ranked = " ".join(TOKENS[token] for token in best)
    sheet.text(20, 238, f"argmax after each: {ranked} (text, nodes 0 to 5)", "faint", size=12)
    sheet.text(20, 258, f"emitted: {' '.join(TOKENS[token] for token in emitted)}", size=13)
    _tree_mask(sheet, parents)
    return sheet


def _tree_mask(sheet: Sheet, parents: list[int]) -> None:
    depths = [0] * len(parents)
    for node, parent in enumerate(parents):
        depths[node] = depths[parent] + 1 if parent >= 0 else 0
    positions = 4 + np.array(depths)
    seen = visible(positions, np.concatenate([np.arange(4), positions]), parents=parents)
    left, top = 430, 52
    for (query, key), sees in np.ndenumerate(seen):
        fill = ("stream" if key < 4 else "full") if sees else "empty"
        sheet.box(left + 20 * key, top + 20 * query, 18, 18, fill)
    sheet.text(left, 20, "who sees whom in the one forward")
    sheet.text(left + 38, 44, "text", "faint", at="middle", size=11)
    for node in range(len(parents)):
        sheet.text(left + 89 + 20 * node, 44, str(node), "faint", at="middle", size=11)
        sheet.text(left - 8, top + 20 * node + 14, f"node {node}", "faint", at="end", size=11)


def laws(palette: dict[str, str]) -> Sheet:
    p, q = [Fraction(1, 2), Fraction(3, 10), Fraction(1, 5)], [Fraction(1, 5), Fraction(3, 10), Fraction(1, 2)]
    target = {(): p, **{(token,): p for token in range(3)}}
    aim = target_law(target, 1)
    sheet = Sheet(700, 250, "The law of the first token under three rules", palette)
    for left, rule in zip((30, 260, 490), ("residual", "typical", "top_k"), strict=True):
        options = {"k": 2} if rule == "top_k" else {}
        given = continued(law(rule, {(): q}, target, **options), target, 1)
        kept = law(rule, {(): q}, target, **options)
        sheet.text(left, 20, rule, bold=True)
        sheet.text(left, 38, "the target's law" if given == aim else "another law", "faint")
        for token in range(3):
            x = left + 62 * token
            drafted = sum(chance for tokens, chance in kept.items() if tokens[0] == token and len(tokens) > 1)
            _column(sheet, x, float(drafted), float(given.get((token,), 0)), float(p[token]))
            sheet.text(x + 20, 214, TOKENS[token], at="middle", size=14)
            sheet.text(x + 20, 230, f"{given.get((token,), Fraction(0))}", "faint", at="middle", size=12)
    _key(sheet, 30, 246, "accepted draft", "what follows a rejection; dashed: the target's law")
    return sheet


def _column(sheet: Sheet, x: float, drafted: float, given: float, aim: float) -> None:
    floor, unit = 196, 200
    sheet.box(x, floor - unit * drafted, 40, unit * drafted, "full")
    sheet.box(x, floor - unit * given, 40, unit * (given - drafted), "stream")
    sheet.line(x - 5, floor - unit * aim, x + 45, floor - unit * aim, "ink", dashed=True)


DRAWINGS = {
    "heads": heads,
    "plans": plans,
    "window": window,
    "draft-and-verify": draft_and_verify,
    "trees": trees,
    "laws": laws,
}


def pictures() -> dict[str, str]:
    """File name -> SVG."""
    return {
        f"{name}-{shade}.svg": str(draw(palette))
        for name, draw in DRAWINGS.items()
        for shade, palette in PALETTES.items()
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/concepts.md.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder")
    folder = parser.parse_args().out
    for file, text in pictures().items():
        (folder / file).write_text(text, encoding="utf-8")
        print(f"wrote {folder / file}")
