"""The suite `recipes`: what is called on which text, what is left out and said, what is resumed, and the page."""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from draft_heads import random_head  # noqa: E402
from models import tiny_llama, tiny_tokenizer  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from zigzag import ArgumentError  # noqa: E402
from zigzag.bench import recipes as bench  # noqa: E402
from zigzag.bench.recipes import PLAIN, TEXTS, Row, page, run  # noqa: E402
from zigzag.cli.app import app  # noqa: E402
from zigzag.models.draft_heads.files import save_head  # noqa: E402
from zigzag.models.draft_heads.kinds import KINDS  # noqa: E402

SHORT: dict[str, Any] = {"temperatures": (0.0,), "batches": (1,), "new_tokens": 4}
FACTS = {
    "command": "zigzag bench recipes", "device": "a CPU", "commit": "abc", "versions": {"torch": "2"},
    "model": "small", "dtype": "float32",
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """With a Medusa head alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(bench, "LENGTH", 120)
    made = tiny_llama(4, vocab_size=256, max_position_embeddings=4096)
    head = random_head("medusa", made)
    save_head(head, "medusa", KINDS["medusa"].sizes(made), made, tmp_path / "zigzag/heads/any/medusa")
    return made


def asked(model: Any, **options: Any) -> list[Row]:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    return list(run(model, tokenizer, **{**SHORT, **options}))


def test_every_recipe_that_can_be_on_every_text(model: Any) -> None:
    rows = asked(model)
    methods = {row.method for row in rows}
    assert {row.text for row in rows} == set(TEXTS) and all(row.new_tokens == 4 for row in rows)
    assert {PLAIN, "medusa", "llma", "streaming", "draft-and-verify", "adaptive", "transformers plain"} <= methods
    assert not methods & {"hydra", "eagle", "rsd", "rest", "mtp", "mtp, 3", "transformers assistant"}
    assert len({row.key for row in rows}) == len(rows)
    assert all(row.as_plain for row in rows if "transformers" not in row.method)
    medusa = next(row for row in rows if row.method == "medusa")
    assert medusa.tokens_per_verification >= 1 and len(medusa.accepted) > 1 and medusa.cost > 0


def test_the_median_of_several_calls(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After one that is not counted."""
    moments = iter([0, 9, 0, 5, 10, 11, 20, 23])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(moments))
    monkeypatch.setattr(bench, "generate", lambda *a, **o: type("Made", (), {"new_tokens": [[1]], "statistics": None}))
    assert bench._timed(model, [[1]], dict, None, 0.0, 4, 3, keeps=False) == ([[1]], 3, None)


def test_what_is_there_is_not_measured_again(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = asked(model, only="edit, 0, 1, llma")
    assert [row.method for row in rows] == ["llma"] and rows[0].as_plain
    done = {row.key: row for row in rows}
    assert asked(model, only="edit, 0, 1, llma", done=done) == []
    more = asked(model, only="edit, 0, 1, l", done=done)
    assert [row.method for row in more] == ["lookahead"]


def test_what_cannot_be_measured_is_said(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(name: str, *given: Any, **more: Any) -> Any:
        raise ArgumentError("not here")

    monkeypatch.setattr(bench, "arguments", refuses)
    said: list[str] = []
    rows = asked(model, only="edit, 0, 1", log=said.append)
    assert "edit, 0, 1, medusa: not here" in said and "medusa" not in {row.method for row in rows}
    assert PLAIN in {row.method for row in rows}


def test_rows_and_temperatures(model: Any) -> None:
    rows = asked(model, temperatures=(1.0,), batches=(2,), only="continue")
    assert {row.method for row in rows} >= {PLAIN, "medusa"} and not [r for r in rows if "transformers" in r.method]
    assert all(row.rows == 2 and row.as_plain is None and row.new_tokens == 8 for row in rows)
    ids = bench.prompts(tiny_tokenizer(), "continue", 3)
    assert len({tuple(row) for row in ids}) == 3


def test_the_page() -> None:
    """The fastest first, its speed over plain decoding's; what differs from plain decoding is told."""
    rows = [
        Row("sums", 0.0, 1, PLAIN, 10, 2.0, True, 1.0, (), 0.0),
        Row("sums", 0.0, 1, "medusa", 10, 1.0, True, 2.5, (0.75, None), 0.125),
        Row("sums", 0.0, 1, "free", 10, 4.0, False, 3.0, (1.0,), 0.5),
        Row("continue", 0.0, 1, PLAIN, 10, 1.0, True),
    ]
    lines = page(FACTS, rows).splitlines()[-4:]
    assert lines[0].startswith("| continue | 0 | 1 | plain |")
    assert lines[1] == "| sums | 0 | 1 | medusa | yes | 1.00 | 2.00 | 2.50 | 0.75 - | 0.12 | yes |"
    assert lines[2].startswith("| sums | 0 | 1 | plain |  | 2.00 | 1.00 |")
    assert lines[3] == "| sums | 0 | 1 | free | no | 4.00 | 0.50 | 3.00 | 1.00 | 0.50 | no |"
    assert bench.kept(json.loads(json.dumps(bench.as_json(FACTS, rows))), FACTS) == rows
    with pytest.raises(ArgumentError, match="cannot join two runs"):
        bench.kept(bench.as_json(FACTS, rows), FACTS | {"device": "another"})


def test_the_picture(tmp_path: Path) -> None:
    """`recipe_plot`: a round's cost in plain steps, its tokens; what lies above the line is faster."""
    plots = pytest.importorskip("zigzag.bench.recipe_plot", reason="matplotlib is not installed")
    rows = [
        Row("sums", 0.0, 1, PLAIN, 10, 2.0, True, 1.0),
        Row("sums", 0.0, 1, "medusa", 20, 2.0, True, 3.0),
        Row("sums", 1.0, 1, "medusa", 20, 1.0, None, 3.0),
        Row("sums", 0.0, 1, "transformers plain", 10, 2.0, True),
        Row("edit", 0.0, 1, "medusa", 20, 2.0, True, 3.0),
    ]
    assert plots.gains(rows) == {"sums": [(PLAIN, 1.0, 1.0), ("medusa", 1.5, 3.0)]}
    assert plots.draw(rows, tmp_path / "p.png") and not plots.draw(rows[1:], tmp_path / "none.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p-dark.png", "p.png"]
    assert all(f"{{image}} {name}\n" in page(FACTS, rows, "p.png") for name in ("p.png", "p-dark.png"))


def test_from_the_command_line(tmp_path: Path) -> None:
    """tiny-glm and its MTP layer, and on again."""
    out = tmp_path / "r.json"
    call = ["bench", "recipes", "--model", "tiny-glm", "--new-tokens", "4", "--out", str(out)]
    for only in ("sums, 0, 1, mtp, 3", "sums, 0, 1, plain"):
        result = CliRunner().invoke(app, [*call, "--only", only, "--resume"])
        assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())["rows"]
    text = out.with_suffix(".md").read_text()
    assert [row["method"] for row in rows] == ["mtp, 3", PLAIN] and "| mtp, 3 |" in text
    assert "--new-tokens 4 --only 'sums, 0, 1, plain'`" in text
    other = tmp_path / "other.json"
    result = CliRunner().invoke(app, [*call[:-1], str(other), "--only", "sums, 0, 1, egale"])
    assert result.exit_code == 2 and "no case has 'sums, 0, 1, egale'" in " ".join(result.output.split())
    assert not other.exists()


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("name", [PLAIN, "medusa", "suffix-decoding", "adaptive"])
def test_what_a_call_has_of_the_one_before(model: Any, name: str, keeps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cache, emptied, and its drafter, but for those that remember what was written; on a CPU nothing."""
    seen: list[dict[str, Any]] = []
    plain = bench.generate

    def noted(*arrays: Any, **options: Any) -> Any:
        held = [] if options["cache"] is None else options["cache"].tokens
        seen.append({**options, "held": held})
        return plain(*arrays, **options)

    monkeypatch.setattr(bench, "generate", noted)
    ours = bench.methods(model, None, {"medusa"}, (2,))[name]
    made = bench._timed(model, [[1, 2, 3, 4, 5]], ours, None, 0.0, 20, keeps=keeps)
    tokens = made[0]
    assert tokens == plain(model, [[1, 2, 3, 4, 5]], temperature=0, max_new_tokens=20, eos_token_id=[]).new_tokens
    first, second = seen
    assert (second["cache"] is not None) == keeps and second["held"] == []
    drafters = first.get("drafter"), second.get("drafter")
    assert (drafters[0] is drafters[1]) == (name == PLAIN or (keeps and name in ("medusa", "adaptive")))
    assert first["max_new_tokens"] == (20 if keeps else 12)
    theirs = bench._timed(model, [[1, 2, 3]], None, {}, 0.0, 200, keeps=keeps)[0]
    assert list(map(len, theirs)) == [bench.THEIRS]
