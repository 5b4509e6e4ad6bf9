"""Run the notebooks of this folder and write into them what they show: text, values and pictures.

python examples/notebooks/run.py                  # all of them
python examples/notebooks/run.py acceptance_laws  # one

Cell by cell in one namespace, without Jupyter and without a kernel. A cell shows what it prints, the value of its last
line, and the figures that pyplot holds, as Jupyter would. `tests/test_notebooks.py` runs them so, too.
"""

import ast
import base64
import io
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

FOLDER = Path(__file__).parent
Notebook = dict[str, Any]
Output = dict[str, Any]


def read(path: Path) -> Notebook:
    notebook: Notebook = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def write(notebook: Notebook, path: Path) -> None:
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def code_cells(notebook: Notebook) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source_of(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def executed(notebook: Notebook) -> list[list[Output]]:
    """What each code cell shows; an error in a cell is raised, with the cell named in a note."""
    matplotlib.use("agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for number, cell in enumerate(code_cells(notebook), start=1):
        try:
            shown.append(_outputs(source_of(cell), names, number))
        except Exception as error:
            error.add_note(f"in code cell {number}: {source_of(cell).splitlines()[0]}")
            raise
        finally:
            plt.close("all")
    return shown


def _outputs(source: str, names: dict[str, Any], number: int) -> list[Output]:
    """Of one cell: first what it printed, then its value, then its figures."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        value = _run(source, names, f"<cell {number}>")
    outputs: list[Output] = []
    if text := printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": _lines(text)})
    if value is not None:
        data = {"text/plain": _lines(repr(value))}
        outputs.append({"data": data, "execution_count": number, "metadata": {}, "output_type": "execute_result"})
    for figure in map(plt.figure, plt.get_fignums()):
        data = {"image/png": _png(figure), "text/plain": [repr(figure)]}
        outputs.append({"data": data, "metadata": {}, "output_type": "display_data"})
    return outputs


def _run(source: str, names: dict[str, Any], name: str) -> Any:
    """The value of the last line, None if it is no expression."""
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), name, "eval"), names)


def _png(figure: Any) -> str:
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=80, metadata={"Software": None})
    return base64.b64encode(held.getvalue()).decode("ascii")


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def stored(notebook: Notebook) -> list[list[Output]]:
    """The outputs that the file holds."""
    return [cell["outputs"] for cell in code_cells(notebook)]


def filled(notebook: Notebook) -> Notebook:
    """The notebook with the outputs of running it now."""
    for number, (cell, outputs) in enumerate(zip(code_cells(notebook), executed(notebook), strict=True), start=1):
        cell |= {"execution_count": number, "outputs": outputs}
    return notebook


def main(names: list[str]) -> None:
    for path in sorted(FOLDER.glob("*.ipynb")):
        if not names or path.stem in names:
            write(filled(read(path)), path)
            print(f"ran {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
