"""`make mutants`: what is changed and what is not; on a tiny package a good test kills and a bad one does not."""

import ast
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from mutants import changes, judge, page
from mutants.changes import OWN, Source, made, sites
from mutants.draw import applied, draw
from mutants.run import Inputs, Jobs, batches, control, judge_room, judges, verdict

ROOT = Path(__file__).resolve().parent.parent


def results(text: str, operator: str) -> list[str]:
    found = [site for site in sites("a.py", text) if site.operator == operator]
    return [new for site in found if (new := made(text, operator, site.number)) is not None]


@pytest.fixture(autouse=True)
def ours(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own operators need no package; one test takes cosmic-ray's too."""
    if "cosmic" not in request.node.name:
        monkeypatch.setattr(changes, "COSMIC", ())


@pytest.mark.parametrize(
    ("operator", "text", "expected"),
    [
        ("drop a keyword argument", "f(a, b=1, c=2)", ["f(a, c=2)", "f(a, b=1)"]),
        ("drop a keyword argument", "f(b=1, **d)", ["f(**d)"]),
        ("drop a keyword argument", "f(*a, b=é(1))", ["f(*a)"]),
        ("swap arguments", "f(a, b.c, 1, 2, g(1), *d)", ["f(b.c, a, 1, 2, g(1), *d)", "f(a, b.c, 2, 1, g(1), *d)"]),
        ("swap arguments", "x, y = a, b", ["x, y = b, a"]),
        ("swap arguments", "isinstance(a, b)", []),
        ("drop a condition", "x = a and b or c", ["x = (b) or c", "x = (c)", "x = (a) or c", "x = (a and b)"]),
        (
            "change a word",
            "x = {'a': f'{b!r} c', \"d\": ''}",
            ["x = {'a?': f'{b!r} c', \"d\": ''}", "x = {'a': f'{b!r} c', \"d?\": ''}"],
        ),
        ("change a word", "def f():\n    return 'f', 'g'", ["def f():\n    return 'f', 'g?'"]),
        ("drop a statement", "def f():\n    x = 1\n    return x", ["def f():\n    x = 1\n    return None"]),
        ("drop a statement", "def f(x):\n    x = 1", ["def f(x):\n    pass"]),
        ("drop a statement", "def f(x):\n    x.y = 1", ["def f(x):\n    pass"]),
        (
            "drop a statement",
            "def f(x):\n    x += 1\n    g(x)",
            ["def f(x):\n    pass\n    g(x)", "def f(x):\n    x += 1\n    pass"],
        ),
        ("drop a statement", "def f(x):\n    raise E(x)", ["def f(x):\n    pass"]),
    ],
)
def test_own_operators(operator: str, text: str, expected: list[str]) -> None:
    assert results(text, operator) == expected


KEPT = '''
"""Words."""
from a import b
import logging as log
if TYPE_CHECKING:
    f(a=1)
__all__ = ["b", "c"]
Both = one["a"] | other
T = TypeVar("T", bound=int)
@overload
def g(x: "int") -> "str": return h(x, y=1)
def g(x: "int | str" = None) -> "str":
    """Words."""
    log.info("words", x, y)
    raise E(f"words {x}", x, y, to="do")
'''


def test_what_no_test_should_notice_is_kept() -> None:
    assert {(site.operator, site.line) for site in sites("a.py", KEPT)} == {("drop a statement", 15)}


def test_cosmic_operators_change_decorated_functions_and_no_annotation() -> None:
    pytest.importorskip("cosmic_ray")
    text = "class A:\n    @property\n    def b(self, c: d | None = 1) -> e | None:\n        return 2 < self.x\n"
    changes = {(site.operator, made(text, site.operator, site.number)) for site in sites("a.py", text)}
    new = {" ".join((change or "").split()) for _, change in changes}
    assert any("return 2 <= self.x" in change for change in new) and any("@property" not in c for c in new)
    assert any("return None" in change for change in new)
    assert all("d | None" in change and "-> e | None" in change for change in new)


def test_an_id_stays_when_lines_move() -> None:
    text = "def f(x):\n    return g(x, y=1)\n"
    ids = {site.id for site in sites("a.py", text)}
    assert ids and ids == {site.id for site in sites("a.py", f"import h\n\n\n{text}")}
    assert len(ids) == len(sites("a.py", text))
    assert ids.isdisjoint(site.id for site in sites("b.py", text))


def test_where_a_change_is_and_which_lines_reach_it() -> None:
    text = "class A:\n  def f(self, x=g('a')):\n    if x == h(\n      'b'\n    ):\n      return 'c'\n"
    found = {site.line: site for site in sites("a.py", text) if site.operator == "change a word"}
    assert [(s.function, s.lines, s.at_import) for _, s in sorted(found.items())] == [
        ("A.f", (2, 2), True),
        ("A.f", (3, 5), False),
        ("A.f", (6, 6), False),
    ]


def test_a_mutant_holds_what_makes_it(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    text = "def f(x):\n    return g(x, y='é', z=1)\n"
    (tmp_path / "room/a.py").write_text(text)
    mutants, population = draw(tmp_path, "room")
    assert population >= len(mutants) == len({mutant["id"] for mutant in mutants}) > 3
    assert {applied(m, text) for m in mutants} == {
        new for name in OWN for n in range(9) if (new := tried(text, name, n)) is not None
    }
    assert draw(tmp_path, "room", 2)[0] == mutants[:2]  # of a longer draw it is the beginning


def tried(text: str, operator: str, number: int) -> str | None:
    try:
        return made(text, operator, number)
    except IndexError:
        return None


def test_which_tests_are_asked_and_in_which_order() -> None:
    def reaching(seconds: float, *lines: int, file: str = "room/a.py") -> dict[str, Any]:
        return {"seconds": seconds, "lines": {file: sum(1 << line for line in lines)}}

    tests = {
        "t.py::slow[1]": reaching(3, 5),
        "t.py::slow[2]": reaching(2, 6),
        "t.py::fast": reaching(1, 4, 5),
        "t.py::beside": reaching(1, 7),
        "t.py::elsewhere": reaching(1, 5, file="room/b.py"),
        "t.py::too_long": reaching(11, 5),
    }
    mutant = {"file": "room/a.py", "lines": [5, 6], "at_import": False}
    assert judges(mutant, tests) == ["t.py::fast", "t.py::slow[2]", "t.py::slow[1]"]
    cases = {f"t.py::cheap[{n}]": reaching(0.02, 5) for n in range(9)} | {"t.py::dear": reaching(0.1, 5)}
    asked = judges(mutant, tests | cases)
    assert asked[:4] == [*(f"t.py::cheap[{n}]" for n in range(3)), "t.py::dear"], "the fourth case comes after it"
    assert asked[9:] == ["t.py::cheap[8]", "t.py::fast", "t.py::slow[2]", "t.py::slow[1]"]
    assert "t.py::beside" in judges(mutant | {"at_import": True}, tests)
    assert judges(mutant | {"lines": [9, 9]}, tests) == []
    assert len(judges({"file": "room/names.py", "lines": [1, 1], "at_import": True}, tests)) == 5
    own = {"tests/room/test_a.py::table": {"seconds": 0.1, "lines": {}}}
    assert judges(mutant | {"at_import": True}, tests | own)[0] == "tests/room/test_a.py::table"
    assert judges(mutant | {"at_import": True, "file": "zigzag/room/a.py"}, own) == ["tests/room/test_a.py::table"]
    assert not set(own) & set(judges(mutant, tests | own))
    many = {f"t.py::{n}": reaching(1, 5) for n in range(100)}
    assert [len(batch) for batch in batches(list(many), many, 1e9)] == [12, 60, 28]
    assert [len(batch) for batch in batches(list(many), many, 20)] == [12, 9]


ADD = "\n\n\ndef add(x, y=0):\n    return x + y\n"
PACKAGE = {
    "zigzag/__init__.py": "",
    "zigzag/chat/good.py": "def double(x):\n    return add(x, y=x)" + ADD,
    "zigzag/chat/bad.py": "def half(x):\n    return add(x, y=-x / 2)" + ADD,
    "tests/test_good.py": "from zigzag.chat.good import double\n\n\ndef test():\n    assert double(3) == 6\n",
    "tests/test_bad.py": "from zigzag.chat.bad import half\n\n\ndef test():\n    assert half(4) is not None\n",
    "tests/test_wrong.py": "from zigzag.chat.bad import half\n\n\ndef test():\n    assert half(4) == 3\n",
    "pyproject.toml": "[tool.pytest.ini_options]\npythonpath = ['tests']\naddopts = ['--import-mode=importlib']\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in PACKAGE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name, value in judge.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take longer than the tests
    monkeypatch.setattr(judge, "LIBRARIES", ["pytest", "coverage", "_pytest.config", "_pytest.doctest"])
    monkeypatch.setattr(changes, "OWN", {name: OWN[name] for name in ("drop a keyword argument", "drop a statement")})
    judge.prepare()
    return tmp_path


def judged(root: Path, **options: Any) -> dict[str, Any]:
    given = Namespace(**{"count": 99, "budget": 60.0, "again": False, "survivors": False, **options})
    return judge_room("chat", "zigzag/chat", root, root / "out", Jobs(root, 2, None), given)


def test_a_good_test_kills_and_a_bad_one_does_not(package: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The whole of it, on a package of two functions; a test that fails anyway judges nothing."""
    state = judged(package)
    found = {(m["file"].rpartition("/")[2], m["operator"], m["function"]): m for m in state["mutants"]}
    killed = found["good.py", "drop a keyword argument", "double"]
    assert (
        killed["verdict"] == "killed"
        and killed["by"] == "tests/test_good.py::test"
        and "assert 3 == 6" in killed["how"]
    )
    survived = found["bad.py", "drop a keyword argument", "half"]
    assert survived["verdict"] == "survived" and survived["asked"] == 1
    assert found["bad.py", "drop a statement", "half"]["by"] == "tests/test_bad.py::test"
    assert state["control"] == {"tests": 2, "failed": []}
    assert (package / "zigzag/chat/good.py").read_text() == PACKAGE["zigzag/chat/good.py"]
    assert judged(package) == state
    assert capfd.readouterr().out.count("survived: ") == 1, "a second run judges nothing that it knows"
    better = PACKAGE["tests/test_bad.py"].replace("is not None", "== 2")
    (package / "tests/test_bad.py").write_text(better)
    assert {mutant["verdict"] for mutant in judged(package)["mutants"]} == {"killed"}


def test_a_verdict_hangs_on_the_helpers_that_its_test_imports(tmp_path: Path) -> None:
    files = {"zigzag/a.py": "", "tests/test_a.py": "from helper import b\n", "tests/helper.py": "import deeper\n"}
    files |= {
        "tests/deeper.py": "",
        "tests/other.py": "",
        "reference/a.py": "",
        "backends/a.py": "",
        "tests/test_b.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    hashes = set()
    for name, changes_it in {
        "tests/other.py": False,
        "tests/test_b.py": False,
        "tests/test_a.py": True,
        "tests/helper.py": True,
        "tests/deeper.py": True,
        "backends/a.py": True,
    }.items():
        before = Inputs(tmp_path)
        (tmp_path / name).write_text(files[name] + "\n# changed\n")
        after = Inputs(tmp_path)
        assert (before.of_file("tests/test_a.py") != after.of_file("tests/test_a.py")) == changes_it, name
        assert before.of_all() != after.of_all()
        hashes.add(after.of_file("tests/test_a.py"))
    assert len(hashes) == 5


def test_a_killer_that_fails_without_a_mistake_is_found(package: Path) -> None:
    """Its verdicts go, and the exit code is 1."""
    name = "tests/test_wrong.py::test"
    mutant = {"id": "aa", "verdict": "killed", "by": name, "how": "", "for": ""}
    state = STATE | {"mutants": [mutant]}
    control("chat", state, Jobs(package, 1, None), {name: {"seconds": 0.1, "lines": {}}})
    assert state["control"]["failed"] == [name] and mutant == {"id": "aa"} and page.code(state, 0.0) == 1


@pytest.mark.parametrize("other", ["x = 2\n", "x = 3  # longer\n"])
def test_a_mistake_of_the_same_length_is_read(package: Path, other: str) -> None:
    """What was compiled before must not be taken for it, nor it for the file after."""
    (package / "zigzag/a.py").write_text("x = 1\n")
    (package / "tests/test_a.py").write_text("from zigzag.a import x\n\n\ndef test():\n    assert x == 1\n")
    with judge.copy_of(package) as tree:
        assert list((tree / "zigzag/__pycache__").glob("a.*.pyc"))
        failures = []
        for text in ("x = 1\n", other, "x = 1\n"):
            with judge.changed(tree, "zigzag/a.py", text):
                found = judge.outcome_of(tree, ["tests/test_a.py::test"], 60)
            failures.append(len((found or {})["failures"]))
    assert failures == [0, 1, 0]


def test_a_mistake_that_nothing_survives_is_killed(package: Path) -> None:
    """Where not even conftest.py can be read no test fails, for none is run."""
    (package / "tests/conftest.py").write_text("import zigzag.chat.good\n")
    name = "tests/test_good.py::test"
    tests = {name: {"seconds": 0.1, "lines": {"zigzag/chat/good.py": 2**9}}}
    mutant = {
        "file": "zigzag/chat/good.py",
        "lines": [1, 1],
        "at_import": False,
        "start": 0,
        "end": 0,
        "new": "1 / 0\n",
    }
    with judge.copy_of(package) as tree:
        found = verdict(tree, mutant | {"lines": [9, 9]}, tests, 60, 1e9)
    assert (found["verdict"], found["by"], found["how"]) == ("killed", name, "no test could be collected")
    lost = STATE | {"mutants": [{"id": "aa", "verdict": "killed", "by": "tests/test_good.py::gone"}]}
    control("chat", lost, Jobs(package, 1, None), {"tests/test_good.py::gone": {"seconds": 0.1, "lines": {}}})
    assert lost["control"]["failed"] == ["tests/test_good.py::gone"], "a test that is not found has not passed"


def test_a_test_that_failed_the_control_is_not_asked_again(package: Path) -> None:
    state = judged(package)
    assert {mutant["by"] for mutant in state["mutants"] if mutant["verdict"] == "killed"} > {"tests/test_good.py::test"}
    (package / "out/chat.json").write_text(page.as_json(state | {"unreliable": ["tests/test_good.py::test"]}))
    again = judged(package, again=True)
    assert {mutant.get("by") for mutant in again["mutants"]} == {None, "tests/test_bad.py::test"}


def test_a_test_that_fails_only_after_another_kills_nothing(package: Path) -> None:
    body = "import sys\nfrom zigzag.chat.bad import half\n\n\ndef test():\n    half(4)\n"
    (package / "tests/test_first.py").write_text(body + "    sys.modules['left_behind'] = sys\n")
    (package / "tests/test_second.py").write_text(body + "    assert 'left_behind' not in sys.modules\n")
    state = judged(package)
    assert not {mutant.get("by") for mutant in state["mutants"]} & {"tests/test_first.py::test"}
    survived = [m for m in state["mutants"] if m["verdict"] == "survived"]
    assert [(m["function"], m["operator"]) for m in survived] == [("half", "drop a keyword argument")]
    assert survived[0]["reached_by"] == 3, "the bad test, and these two"


def test_tests_of_another_tree_are_refused(package: Path) -> None:
    """As where an installed zigzag stood before the copy."""
    (package / "tests/test_good.py").write_text("import sys, os\nsys.modules['zigzag'] = os\ndef test():\n    pass\n")
    with pytest.raises(RuntimeError, match="instead of the copy"):
        judge.outcome_of(package, ["tests/test_good.py::test"], 60)


STATE = {
    "room": "chat",
    "commit": "c0ffee",
    "population": 40,
    "mutants": [
        {"id": "aa", "file": "a.py", "function": "f", "operator": "o", "was": "x", "reads": "y", "verdict": "killed"},
        {"id": "bb", "file": "a.py", "function": "f", "operator": "o", "was": "x", "reads": "z"}
        | {"verdict": "survived", "asked": 3, "reached_by": 3},
    ],
}


def test_the_page_tells_of_every_survivor() -> None:
    text = page.text([STATE], {})
    assert "| chat | 2 | 40 | 1 | 1 | 50.0% | c0ffee |" in text
    assert "- bb, `a.py` f: `x` became `z` (3 tests asked). **not yet looked at**" in text
    assert "**equivalent: so**" in page.text([STATE], {"bb": "equivalent: so"}) and "- aa" not in text


def test_the_exit_code_tells_of_the_share() -> None:
    assert page.code(STATE, 0.5) == 0 and page.code(STATE, 0.6) == 1
    left = STATE | {"mutants": [*STATE["mutants"], {"id": "cc"}]}
    assert page.code(left, 0.5) == 3
    assert page.code(STATE | {"control": {"failed": ["t"]}}, 0.5) == 1


def test_a_room_that_is_half_judged_is_not_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, folder = tmp_path / "out", tmp_path / "docs"
    out.mkdir(), folder.mkdir()
    (out / "chat.json").write_text(page.as_json(STATE | {"mutants": [{"id": "cc"}]}))
    page.record(out, folder)
    assert not (folder / "chat.json").exists()
    (out / "chat.json").write_text(page.as_json(STATE))
    page.record(out, folder)
    assert json.loads((folder / "chat.json").read_text()) == STATE
    assert "without a survivor" not in capsys.readouterr().out
    (folder / "reasons.toml").write_text('aa = "it was killed since"\nbb = "equivalent: so"\n')
    page.record(out, folder)
    assert "reasons without a survivor, to be taken out of reasons.toml: aa\n" in capsys.readouterr().out
    assert "**equivalent: so**" in (folder / "README.md").read_text()


def test_the_page_is_what_its_records_say() -> None:
    folder = ROOT / "docs/mutants"
    states = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    assert (folder / "README.md").read_text(encoding="utf-8") == page.text(states, page.reasons(folder))
    survivors = {m["id"] for state in states for m in state["mutants"] if m["verdict"] == page.SURVIVED}
    assert set(page.reasons(folder)) == survivors  # each has its reason, and no reason is stale


def test_source_spans_count_bytes() -> None:
    source = Source("é = 'é'\nx = 'ö'\n")
    words = [node for node in ast.walk(source.tree) if isinstance(node, ast.Constant)]
    assert [source.text(word).decode() for word in words] == ["'é'", "'ö'"]
