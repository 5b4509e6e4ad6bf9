"""`zigzag recipes`: the systems of the survey, what each is made of, and which run here."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from zigzag.cli.options import print_whole
from zigzag.files import markdown as pages
from zigzag.recipes import RECIPES, Recipe

HEAD = ("recipe", "paper", "drafts from", "shape", "ends", "rule", "lossless", "needs, or lacks")
PAGE = """# The survey's systems

Made by `zigzag recipes --markdown`; nothing is typed by hand. Systems of draft-then-verify decoding up to the survey
arXiv 2404.14897, and some that came after it (marked *later*). The survey's own table was not at hand, so this one is a
reconstruction from the systems' papers and code. What runs, runs with this library's parts:

```python
import zigzag
from zigzag import recipes

model, tokenizer = zigzag.load_model("tiny-glm")
small = zigzag.load_head("student", model)
ids = tokenizer("def area(width, height):", return_tensors="pt").input_ids
result = zigzag.generate(model, ids, recipe="medusa", temperature=0, max_new_tokens=16)
print(result.statistics)
result = zigzag.generate(model, ids, **recipes.arguments("rsd", draft_model=small), temperature=0, max_new_tokens=16)
```

With `recipe=` what a row needs is looked for: a trained head of the kind in brackets, and as draft model the head
`student`, among those that ship and those that `zigzag train-drafter` has made ([drafting](drafting.md));
`recipes.arguments(name, ...)` takes what the last column names. *Lossless*: what is emitted follows the target's own
law; at temperature 0 every lossless recipe gives the tokens of plain greedy decoding, which tests hold it to, and laws
of sampled tokens are counted.

"""
CLAIMS = (
    "What their authors measured, where it was at hand; none of it is a number of this library "
    "([ours](drafting.md#what-was-measured)):"
)


def recipes(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/survey.md instead.")] = False,
) -> None:
    """The systems of the survey: where drafts come from, how they are verified, which run here and what they need."""
    rows = [cells(name, recipe) for name, recipe in RECIPES.items()]
    if markdown:
        claims = [f"- `{name}`: {recipe.claim}" for name, recipe in RECIPES.items() if recipe.claim]
        typer.echo("\n".join([PAGE + "\n".join(pages.table(HEAD, rows)), "", CLAIMS, "", *claims]))
        return
    table = Table(*HEAD)
    for row in rows:
        table.add_row(*row)
    print_whole(Console(), table)


def cells(name: str, recipe: Recipe) -> tuple[str, ...]:
    lossless = "for its own law" if recipe.own_law else {True: "yes", False: "no", None: "-"}[recipe.lossless]
    kind = f"head ({recipe.head})"
    needs = ", ".join(kind if need == "head" else need for need in recipe.needs)
    need = needs if recipe.runs else f"does not run: lacks {recipe.lacks}"
    paper = recipe.paper + (" (later)" if recipe.after else "")
    return name, paper, recipe.source, recipe.shape, recipe.termination, recipe.rule or "-", lossless, need
