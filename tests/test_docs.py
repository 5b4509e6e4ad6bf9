"""README and docs: their Python runs, page by page in one namespace a page, their commands exist, their links lead."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from unittest.mock import patch

import pytest
import typer
from test_architecture import FLOOR

from zigzag.cli.app import app
from zigzag.reference.errors import ZigzagError

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "tests/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

FENCES = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
LANGUAGES = ("python", "sh", "text")  # what runs, what is checked, what is shown
NOT_RUN = "# Not run by the tests"  # first words of a block that needs more than a CPU; its imports run
COMMANDS = typer.main.get_command(app).commands
(UsageError,) = typer.BadParameter.__bases__  # of the click that typer brings or imports
OTHERS = ("cp", "pip", "pytest", "source", "torchrun", "vllm")  # commands that are not this project's


def fences(text: str, language: str) -> list[str]:
    return [content for name, content in FENCES.findall(text) if name == language]


def run_blocks(text: str) -> int:
    names: dict[str, object] = {}
    blocks = fences(text, "python")
    for block in blocks:
        exec(imports(block) if block.startswith(NOT_RUN) else compile(block, "<docs>", "exec"), names)
    return len(blocks)


def imports(source: str) -> object:
    """The imports of a block that must compile."""
    found = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    return compile(ast.Module(body=found, type_ignores=[]), "<docs>", "exec")


@EACH_PAGE
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_blocks(page.read_text())


def test_readme_has_code() -> None:
    assert len(fences((ROOT / "README.md").read_text(), "python")) > 1


def test_readme_is_read_in_one_go() -> None:
    """What, why, code, two commands, a figure, a table, the state of every part; the rest is on pages."""
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 120
    assert text.count("![") == 1 and text.count("\n|---") == 2 and "make demo" in text and "make test" in text


def test_broken_code_is_noticed() -> None:
    with pytest.raises(NameError):
        run_blocks("```python\nno_such_name\n```\n")
    with pytest.raises(ImportError):
        run_blocks(f"```python\n{NOT_RUN}: four GPUs.\nfrom zigzag import no_such_name\nno_such_name()\n```\n")
    assert run_blocks(f"```python\n{NOT_RUN}: four GPUs.\nimport zigzag\nno_such_name()\n```\n") == 1


@EACH_PAGE
def test_code_stands_where_it_is_checked(page: Path) -> None:
    assert unchecked_blocks(page.read_text()) == []


def unchecked_blocks(text: str) -> list[str]:
    """First lines of indented blocks, and fences in other languages than LANGUAGES."""
    indented = re.findall(r"^\n {4,}(\S.*)$", FENCES.sub("", text), flags=re.MULTILINE)
    return indented + [f"```{name}" for name, _ in FENCES.findall(text) if name not in LANGUAGES]


def test_unchecked_block_is_noticed() -> None:
    assert unchecked_blocks("So:\n\n    zigzag info\n    zigzag demo\n\n```\nx\n```\n") == ["zigzag info", "```"]


@EACH_PAGE
def test_commands_exist(page: Path) -> None:
    wrong = [(command, fault) for command in commands(page.read_text()) if (fault := fault_of(shlex.split(command)))]
    assert wrong == []


def commands(text: str) -> Iterator[str]:
    """The lines of sh fences without their comments, and what stands in backticks and begins as one of ours."""
    for block in fences(text, "sh"):
        for line in block.replace("\\\n", "").splitlines():
            if words := shlex.split(line, comments=True):
                yield shlex.join(words)
    yield from re.findall(r"`((?:zigzag |make |python -m zigzag)[^`]*)`", FENCES.sub("", text))


def fault_of(words: list[str]) -> str:
    """What is wrong with a command of this project: a name, an option or a value that does not exist; empty if none."""
    match [words[0].removeprefix(".venv/bin/").removeprefix(".venv-vllm/bin/"), *words[1:]]:
        case ["zigzag", *rest] | ["python", "-m", "zigzag", *rest]:
            return fault_of_zigzag(rest)
        case ["make", *rest]:
            return fault_of_make(rest)
        case ["python", "-m", str(module), *rest] if module.startswith("zigzag."):
            return fault_of_script(ROOT / f"{module.replace('.', '/')}.py", rest)
        case ["python", str(file), *rest] if file.endswith(".py"):
            return fault_of_script(ROOT / file, rest)
        case ["python", "-m", "pytest", *rest]:
            return " ".join(f"no {word}" for word in rest if word.endswith(".py") and not (ROOT / word).is_file())
        case ["python", "-m", "venv", _] | ["pip", *_]:
            return ""
    return "" if words[0] in OTHERS else f"unknown command {words[0]}"


def fault_of_zigzag(words: list[str]) -> str:
    """What the command line says to these words, all but the work."""
    if words and words[0] not in COMMANDS:
        return f"no command {words[0]}"
    if len(words) < 2:
        return ""  # named, not called
    command = COMMANDS[words[0]]
    with patch.object(command, "callback", lambda **_: None):
        try:
            command.main(words[1:], standalone_mode=False)
        except UsageError as error:
            return error.format_message()
        except ZigzagError:
            return ""  # right for another machine, as with --device cuda
    return ""


def fault_of_make(words: list[str]) -> str:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^(\w[\w-]*):", text, flags=re.MULTILINE))
    variables = set(re.findall(r"^(\w+) \?=", text, flags=re.MULTILINE))
    wrong = [word for word in words if word not in targets and word.partition("=")[0] not in variables]
    return f"the Makefile does not know {', '.join(wrong)}" if wrong else ""


def fault_of_script(path: Path, words: list[str]) -> str:
    """An option is a text of the script's, or with typer the name of a parameter."""
    if not path.is_file():
        return f"no file {path.relative_to(ROOT)}"
    if "__main__" not in path.read_text():
        return f"{path.relative_to(ROOT)} is no script"
    nodes = list(ast.walk(ast.parse(path.read_text())))
    known = {node.value for node in nodes if isinstance(node, ast.Constant)}
    known |= {f"--{node.arg.replace('_', '-')}" for node in nodes if isinstance(node, ast.arg)}
    wrong = [word for word in words if word.startswith("--") and word not in known]
    return f"{path.name} has no {', '.join(wrong)}" if wrong else ""


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("zigzag generate Hello --drafter lookup --num-draft-tokens 3", ""),
        ("zigzag generate Hello --draftr lookup", "--draftr"),
        ("zigzag generate Hello --drafter lokup", "lokup"),
        ("zigzag generate Hello World", "World"),
        ("zigzag generat Hello", "generat"),
        ("zigzag bench decod", "decod"),
        ("zigzag bench decode --device cuda --out F", ""),
        ("zigzag sizes", ""),
        ("zigzag sizes --tp 8", "models"),
        ("python -m zigzag infos", "infos"),
        ("make test-gpu GPU=--list", ""),
        ("make tset", "tset"),
        ("make demo DMEO=--help", "DMEO"),
        ("python -m zigzag.cli.train tiny-glm --out F --seconds 425", ""),
        ("python -m zigzag.cli.train tiny-glm --out F --second 425", "--second"),
        ("python -m zigzag.cli.trian tiny-glm", "trian"),
        ("python tests/gpu/run.py --within 500", ""),
        ("python tests/gpu/run.py --whithin 500", "--whithin"),
        (".venv/bin/python -m pytest -q tests/test_dcos.py", "tests/test_dcos.py"),
        ("zigazg info", "zigazg"),
    ],
)
def test_wrong_command_is_noticed(command: str, fault: str) -> None:
    found = fault_of(shlex.split(command))
    assert (fault in found) if fault else not found


def test_commands_are_found() -> None:
    page = "By `zigzag info`.\n\n```sh\nzigzag demo \\\n  --model tiny-glm  # small\n\nmake test\n```\n"
    assert list(commands(page)) == ["zigzag demo --model tiny-glm", "make test", "zigzag info"]
    assert len([page for page in PAGES if list(commands(page.read_text()))]) > 5


@EACH_PAGE
def test_names_exist(page: Path) -> None:
    assert unknown_names(page.read_text()) == []


def unknown_names(text: str) -> list[str]:
    """What stands in backticks as zigzag.X.Y and is not there."""
    found = set(re.findall(r"`(zigzag(?:\.\w+)+)", FENCES.sub("", text)))
    return sorted(name for name in found if not exists(name))


def exists(name: str) -> bool:
    try:
        found = resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return not isinstance(found, ModuleType) or getattr(found, "__file__", None) is not None  # no folder left behind


def test_unknown_name_is_noticed() -> None:
    assert unknown_names("`zigzag.ops.merge(x)`, `zigzag.drafting`, `zigzag.no`") == ["zigzag.drafting", "zigzag.no"]


@EACH_PAGE
def test_paths_exist(page: Path) -> None:
    assert unknown_paths(page.read_text()) == []


TOPS = ("", "zigzag", "backends", "tests", "tests/gpu")  # a page may name a path from a room on
ROOM = (
    "(?:" + "|".join(sorted({*FLOOR, "zigzag", "tests", "docs", "examples", "torch", "triton", "cupy", "eager"})) + ")"
)


def unknown_paths(text: str) -> list[str]:
    """What stands in backticks as a path below a folder of the project, or as a module, and is not there."""
    found = re.findall(rf"`({ROOM}/[\w./-]*)`", FENCES.sub("", text))
    return sorted({path for path in found if not any(_is_there(ROOT / top / path) for top in TOPS)})


def _is_there(path: Path) -> bool:
    return path.exists() or path.with_name(f"{path.name}.py").exists()


def test_unknown_path_is_noticed() -> None:
    there = "`tests/parity/`, `running/attention.py`, `triton/parts.py`"
    assert unknown_paths(f"{there}, `zigzag/plans.py`, `reference/x/y.py`, `running/attn.py`") == [
        "reference/x/y.py",
        "running/attn.py",
        "zigzag/plans.py",
    ]


def test_architecture_page_has_the_floors() -> None:
    assert floors((ROOT / "docs/architecture.md").read_text()) == {room: floor + 1 for room, floor in FLOOR.items()}


def floors(text: str) -> dict[str, int]:
    """The rows of a page's table: room -> floor."""
    return {
        room: int(floor) for floor, room in re.findall(r"^\| (\d+) \| `(\w+)(?:/|\.py)` \|", text, flags=re.MULTILINE)
    }


def test_floors_are_read() -> None:
    assert floors("| floor | room |\n|---|---|\n| 3 | `ops/` | door |\n") == {"ops": 3}


@pytest.mark.parametrize("folder", ["benchmarks", "kernels"])
def test_floor_and_cold_are_defined_where_they_are_used(folder: str) -> None:
    pages = {path.name: undefined(path.read_text()) for path in (ROOT / "docs" / folder).glob("*.md")}
    assert {name: words for name, words in pages.items() if words} == {}


def undefined(text: str) -> list[str]:
    """Which of the words are used and neither set in italics, as in their definition, nor the head of a table's row."""
    return [
        word
        for word in ("floor", "cold")
        if re.search(rf"\b{word}\b", text) and not re.search(rf"\*{word}\*|^\| {word}, .* \|$", text, re.M | re.I)
    ]


def test_an_undefined_word_is_noticed() -> None:
    assert undefined("| shape | floor |\n\ncold") == ["floor", "cold"]
    assert undefined("*Floor* is the least time.\n\n| floor |\n\n*cold*") == []


@EACH_PAGE
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page.read_text(), page.parent) == []


def broken_links(text: str, folder: Path) -> list[str]:
    targets = re.findall(r"\]\(([^)#:]+)\)", re.sub(r"`[^`\n]+`(?!\])", "", text))  # code in the text is no link
    return [target for target in targets if not (folder / target).exists()]


def test_broken_link_is_noticed() -> None:
    assert broken_links("[x](nowhere.md)", ROOT) == ["nowhere.md"]
    assert broken_links("[`x`](nowhere.md)", ROOT) == ["nowhere.md"]
    assert broken_links("`x[0](y)`, [a](README.md)", ROOT) == []
