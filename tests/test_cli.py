"""The command line: what it prints, what it writes, and one line for an error."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer", reason="typer is not installed")
pytest.importorskip("rich", reason="rich is not installed")

from models import random_ids, smollm2, tiny_llama, tiny_tokenizer
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from zigzag.cli import app as cli
from zigzag.cli import evaluate
from zigzag.cli.app import DRAFTERS
from zigzag.cli.continuation import Continuation, beyond
from zigzag.cli.options import print_whole
from zigzag.cli.rules import TREES, check_rule
from zigzag.evidence import harness
from zigzag.files.json_files import write_text
from zigzag.generation.drafting.named import NAMED
from zigzag.measuring.prompts import PasskeyPrompt
from zigzag.models.draft_heads.kinds import KINDS
from zigzag.models.sources import SMOLLM2_FILE
from zigzag.plans.heads import HeadPlan
from zigzag.plans.layers import LayerPlan
from zigzag.plans.own_windows import make_window_plan
from zigzag.plans.scores import HeadScores
from zigzag.reference import RULES
from zigzag.reference.errors import ArgumentError, PlanError, ZigzagError

RUN = CliRunner()


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    HeadScores(np.arange(12.0).reshape(4, 3), "gate_gradient", 4, 16).save(tmp_path / "scores.json")
    return tmp_path / "scores.json"


def test_info_lists_backends() -> None:
    result = RUN.invoke(cli.app, ["info"])
    assert result.exit_code == 0 and "numpy" in result.output and "torch" in result.output


def test_plan_writes_what_it_says(scores: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    result = RUN.invoke(cli.app, ["plan", str(scores), "--out", str(out), "--num-full", "1"])
    assert result.exit_code == 0, result.output
    assert "sssF" in result.output and LayerPlan.load(out).map() == "sssF"
    assert f"next: zigzag prove {out}\n" in result.output


@pytest.mark.parametrize(
    ("model", "asked"),
    [("tiny-glm", " --model tiny-glm"), (SMOLLM2_FILE, ""), ("", "")],
    ids=["own", "default", "none"],
)
def test_plan_names_the_model_that_was_scored(model: str, asked: str, tmp_path: Path) -> None:
    """In the command to type next, which would try the plan on another model without it."""
    HeadScores(np.arange(4.0).reshape(4, 1), "gate_gradient", 4, 16, model=model).save(tmp_path / "scores.json")
    out = tmp_path / "plan.json"
    result = RUN.invoke(cli.app, ["plan", str(tmp_path / "scores.json"), "--out", str(out), "--num-full", "1"])
    assert result.output.endswith(f"next: zigzag prove {out}{asked}\n"), result.output


def test_a_plan_with_windows_of_their_own(scores: Path, tmp_path: Path) -> None:
    """Budgets in bytes (`zigzag.cli.budgets`), of one file or several; an engine's refusal comes first."""
    wide, out = tmp_path / "wide.json", tmp_path / "plan.json"
    HeadScores(np.arange(12.0).reshape(4, 3) * 0.8, "gate_gradient", 4, 46).save(wide)
    budget = ["--kv-bytes", str(2 * 3 * 8 * 4 * 330), *"--context 200 --head-size 8 --itemsize 4 --spare 5".split()]
    result = RUN.invoke(cli.app, ["plan", str(scores), "--out", str(out), *budget])
    assert result.exit_code == 0 and LayerPlan.load(out).map() == "sssF", result.output
    several = ["plan", str(scores), str(wide), "--out", str(out)]
    result = RUN.invoke(cli.app, [*several, *budget])
    made = make_window_plan(
        [HeadScores.load(scores), HeadScores.load(wide)], kv_bytes=2 * 3 * 8 * 4 * 330, context=200, head_size=8,
        itemsize=4, spare=5,
    )  # fmt: skip
    assert result.exit_code == 0 and LayerPlan.load(out) == made, result.output
    assert made.map() == "16 16 46 F" and "16 16 46 F" in result.output and "windows: loss by scores" in result.output
    out.unlink()
    refused = RUN.invoke(cli.app, [*several, *budget, "--for", "vllm"])
    assert isinstance(refused.exception, PlanError) and not out.exists()


def test_calibration_at_several_windows(tmp_path: Path) -> None:
    """A file for each, on the same prompts."""
    pytest.importorskip("torch", reason="torch is not installed")
    options = "--model tiny-glm --method lost_mass --length 400 --prompts 1 --recent 16 --recent 48".split()
    result = RUN.invoke(cli.app, ["calibrate", "--out", str(tmp_path / "s.json"), *options])
    assert result.exit_code == 0, result.output
    found = [HeadScores.load(tmp_path / f"s-{recent}.json") for recent in (16, 48)]
    assert [each.recent for each in found] == [16, 48] and found[0].details == found[1].details
    both = f"{tmp_path / 's-16.json'} {tmp_path / 's-48.json'}"
    assert f"next: zigzag plan {both} --out plan.json --kv-bytes" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s-16.json", "s-48.json"]


def test_gates_are_trained(tmp_path: Path) -> None:
    """Broken off by the time, gone on with, and taken by `plan` for their own budget alone."""
    pytest.importorskip("torch", reason="torch is not installed")
    out, plan = tmp_path / "gates.json", str(tmp_path / "plan.json")
    training = "--steps 2 --passkeys 1 --words 2 --lengths 1 --shortest 400 --longest 400 --recent 64 --num-full 3"
    command = ["calibrate", "--out", str(out), "--model", "tiny-glm", "--method", "trained_layer_gates"]
    result = RUN.invoke(cli.app, [*command, *training.split()])
    assert result.exit_code == 0 and f"next: zigzag plan {out} --num-full 3" in result.output, result.output
    assert HeadScores.load(out) == HeadScores.load(tmp_path / "gates.json.run" / "scores.json")
    again = RUN.invoke(cli.app, [*command, *training.split()])
    assert isinstance(again.exception, ArgumentError) and "--resume" in str(again.exception)
    assert RUN.invoke(cli.app, [*command, *training.split(), "--resume"]).exit_code == 0
    assert RUN.invoke(cli.app, ["plan", str(out), "--num-full", "3", "--out", plan]).exit_code == 0
    assert "trained for num_full = 3, got 4" in str(
        RUN.invoke(cli.app, ["plan", str(out), "--num-full", "4", "--out", plan]).exception
    )


EARLY = [
    (["generate", "x", "--plan", "SCORES"], "holds head scores, needed here: a layer plan"),
    (["generate", "x", "--plan", "plam.json"], "did you mean plan.json?"),
    (["generate", "x", "--recipe", "medussa"], "did you mean medusa?"),
    (["generate", "x", "--drafter", "mtp"], "needs a GLM-4.5 checkpoint with an MTP layer"),
    (["generate", "x", "--drafter", "model", "--draft-model", "smolm2"], "did you mean smollm2?"),
    (["generate", "x", "--drafter", "retrieval", "--datastore", "nope"], "there is no file nope"),
    (["generate", "@nope.txt"], "cannot read the prompt"),
    (["generate", "x", "--model", "smolm2"], "did you mean smollm2?"),
    (["refine", "nope.json", "--out", "x.json"], "there is no file nope.json"),
    (["refine", "SCORES", "--out", "x.json"], "holds head scores"),
    (["prove", "nope.json"], "there is no file nope.json"),
    (["recover", "nope.json", "--out", "run"], "there is no file nope.json"),
    (["recover", "PLAN", "--out", "run", "--model", "smolm2"], "did you mean smollm2?"),
    (["evidence", "--suite", "ruler", "--plans", "nope.json"], "there is no file nope.json"),
    (["evidence", "--suite", "ruler", "--scores", "PLAN", "--shares", "0.5"], "holds a layer plan"),
    (["eval", "--tasks", "x", "--plan", "SCORES"], "holds head scores"),
    (["eval", "--tasks", "own_sum", "--include-path", "."], "did you mean own_sums?"),
    (["conform", "tritn"], "did you mean triton?"),
    (["bench", "--model", "smolm2"], "did you mean smollm2?"),
    (["bench", "recipes", "--model", "smolm2"], "did you mean smollm2?"),
    (["calibrate", "--out", "x.json", "--method", "trained_gates", "--model", "tiny-glm", "--longest", "99999"],
     "rows of 99999 tokens are beyond the model's context"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"), EARLY, ids=lambda given: " ".join(given[:3]) if isinstance(given, list) else ""
)
def test_arguments_are_read_before_anything_heavy_is_imported(
    arguments: list[str], message: str, scores: Path, tmp_path: Path
) -> None:
    """In a process of its own, where torch and transformers cannot be imported: a slip costs a second."""
    LayerPlan(("full",) * 4, 4, 16).save(tmp_path / "plan.json")
    (tmp_path / "own.yaml").write_text("task: own_sums\n")
    words = [{"SCORES": "scores.json", "PLAN": "plan.json"}.get(word, word) for word in arguments]
    code = "import sys\nsys.modules['torch'] = sys.modules['transformers'] = None\n"
    code += f"sys.argv = {['zigzag', *words]!r}\nfrom zigzag.cli.app import app_entry\napp_entry()"
    here = {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | here, capture_output=True, text=True
    )
    assert done.returncode == 1 and message in done.stderr and done.stderr.startswith("error: "), done.stderr


class Letters:
    """A tokenizer of bytes."""

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        return bytes(tokens).decode("utf-8", errors="replace")


def test_text_is_plain_where_the_output_is_no_terminal() -> None:
    """Each piece once, no half characters, no markup."""
    log, told = Console(file=io.StringIO(), width=20), []
    with Continuation(log, Letters()) as shown:
        shown.read(1, 2)
        for token in "[b]\u00e9:smile:".encode():
            shown.show(0, [token])
            told.append(log.file.getvalue())
    assert told[2] == told[3] == "[b]" and told[4] == "[b]\u00e9"
    assert log.file.getvalue() == "[b]\u00e9:smile:\n"
    screen = Console(file=io.StringIO(), force_terminal=True, width=40)
    with Continuation(screen, Letters()) as shown:
        shown.read(1, 2)
        shown.show(0, [65, 66])
    assert "AB" in screen.file.getvalue()


def test_a_warning_beyond_the_context() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    model = tiny_llama(1)
    limit = model.config.max_position_embeddings
    assert beyond(model, limit - 8, 8) == ""
    assert f"are beyond the model's context of {limit:,} (max_position_embeddings)" in beyond(model, limit - 7, 8)
    assert "up to 128 new ones" in beyond(model, limit, None)


def test_generate_says_what_comes_next_and_what_is_held(tmp_path: Path) -> None:
    LayerPlan(("full", "streaming") * 6, 4, 16).save(tmp_path / "plan.json")
    call = ["generate", "def area(", "--model", "tiny-glm", "--new-tokens", "3"]
    full = RUN.invoke(cli.app, [*call, "--drafter", "lookup", "--rule", "top_k"])
    assert full.exit_code == 0 and "rule top_k with k = 10" in full.output, full.output
    assert "slots for tokens to come)" in full.output and "for these" in full.output
    assert "next: zigzag calibrate --out scores.json --model tiny-glm" in full.output
    planned = RUN.invoke(cli.app, [*call, "--plan", str(tmp_path / "plan.json")])
    assert planned.exit_code == 0 and "what a plan saves shows with longer texts" in planned.output, planned.output
    assert f"next: zigzag prove {tmp_path / 'plan.json'} --model tiny-glm" in planned.output
    HeadPlan([[True, True, False, False]] * 12, 4, 16).save(tmp_path / "heads.json")
    by_heads = RUN.invoke(cli.app, [*call, "--plan", str(tmp_path / "heads.json")])
    told = f"next: zigzag evidence --suite ruler --plans {tmp_path / 'heads.json'} --model tiny-glm"
    assert by_heads.exit_code == 0 and told in by_heads.output, by_heads.output  # `prove` would refuse it


def test_files_are_for_whom_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "x", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_tables_are_not_cut_in_a_narrow_terminal() -> None:
    narrow = Console(width=20, record=True, file=io.StringIO())
    table = Table("a long head", "another long head")
    table.add_row("1234567890123", "9876543210987")
    print_whole(narrow, table)
    printed = narrow.export_text()
    assert all(cell in printed for cell in ("another long head", "1234567890123", "9876543210987"))
    narrow.print(table)
    assert "9876543210987" not in narrow.export_text()  # what would happen otherwise


@pytest.mark.parametrize(("model", "code"), [("tiny-glm", 0), ("smollm2", 1)])
def test_mtp_drafts(model: str, code: int) -> None:
    call = ["generate", "What is 12+34?", "--model", model, "--drafter", "mtp", "--new-tokens", "8"]
    result = RUN.invoke(cli.app, call)
    assert result.exit_code == code, result.output
    assert ("acceptance by position" in result.output) if code == 0 else "MTP layer" in str(result.exception)


def test_text_that_ends_it() -> None:
    """Of the given strings the first that is complete; without one the text goes on."""
    call = ["generate", "def area(width, height):", "--model", "tiny-glm", "--new-tokens", "12", "--temperature", "0"]
    whole, cut = RUN.invoke(cli.app, call), RUN.invoke(cli.app, [*call, "--stop", "never", "--stop", "e"])
    assert whole.exit_code == cut.exit_code == 0, cut.output
    assert "12 tokens in 12 verifications" in whole.output and "12 tokens in 12" not in cut.output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["plan", "nowhere.json", "--out", "x.json", "--num-full", "1"], "a JSON file is needed"),
        (["plan", "SCORES", "--out", "x.json"], "exactly one of"),
        (["plan", "SCORES", "--num-full", "1"], "plan: --out FILE needed"),
        (["plan", "--num-full", "1", "--out", "x.json"], "plan: SCORES needed"),
        (["plan", "PLAN", "--out", "x.json", "--num-full", "1"], "holds a layer plan, needed here: head scores"),
        (["plan", "plam.json", "--out", "x.json", "--num-full", "1"], "did you mean plan.json?"),
        (["plan", "SCORES", "--out", "x.json", "--num-full", "9"], "0 to 4 layers"),
        (["generate", "hello", "--plan", "nowhere.json"], "a JSON file is needed"),
        (["generate", "hello", "--model", "nowhere.gguf"], "no such file"),
        (["generate", "hello", "--drafter", "model"], "go together"),
        (["generate", "@nowhere.txt"], "cannot read the prompt"),
        (["generate", "hello", "--recipe", "medusa", "--drafter", "lookup"], "give one or the other"),
        (["generate", "hello", "--model", "tiny-glm", "--recipe", "medussa"], "did you mean medusa?"),
        (["generate", "hello", "--model", "tiny-glm", "--recipe", "rest"], "needs datastore (zigzag datastore build"),
        (["train-drafter", "medussa", "--model", "tiny-glm"], "kind must be one of blockwise, medusa"),
        (["train-drafter", "medusa", "--model", "tiny-glm", "--size", "counts=2", "--out", "x"], "has the sizes count"),
        (["train-drafter", "medusa", "--model", "tiny-glm", "--size", "count", "--out", "x"], "must be as count=3"),
        (["train-drafter", "medusa", "--model", "tiny-glm", "--resume", "--out", "x"], "there is none; start the run"),
        (["generate", "hello", "--model", "tiny-gml"], "did you mean tiny-glm?"),
        (["generate", "hello", "--model", "."], "holds no config.json"),
        (["generate", "hello", "--device", "gpu"], "--device must be as torch names it"),
        (["generate", "hello", "--device", "cuda:7"], "finds no CUDA device"),
        (["generate", "hello", "--model", "tiny-glm", "--plan", "PLAN"], "the plan is for 4 layers, the model has 12"),
        (["prove", "PLAN", "--model", "tiny-glm"], "the plan is for 4 layers, the model has 12"),
        (["refine", "PLAN", "--out", "x.json", "--model", "tiny-glm"], "the plan is for 4 layers, the model has 12"),
        (["calibrate", "--out", "."], "--out must be a file"),
        (["calibrate", "--out", "x.json", "--steps", "3"], "--steps is no option of gate_gradient"),
        (["calibrate", "--out", "x.json", "--method", "trained_gates", "--prompts", "3"], "--prompts is no option of"),
        (["calibrate", "--out", "x.json", "--method", "trained_gates", "--num-full", "3"], "knows no num_full"),
        (["calibrate", "--out", "x.json", "--method", "trained_gates", "--resume"], "--resume needs"),
        (["plan", "SCORES", "--out", "scores.json/x.json", "--num-full", "1"], "nothing can be written"),
        (["plan", "SCORES", "SCORES", "--out", "x.json", "--num-full", "1"], "whose budget is bytes: give --kv-bytes"),
        (
            ["plan", "SCORES", "SCORES", "--out", "x.json", "--kv-bytes", "9"],
            "give --kv-bytes, --context and --head-size",
        ),
        (
            ["plan", "SCORES", "SCORES", "--out", "x.json", "--heat-map", "y.png"],
            "--heat-map draws one file of scores, several were given",
        ),
        (
            ["plan", "SCORES", "SCORES", "--out", "x.json", *"--kv-bytes 9 --context 9 --head-size 9".split()],
            "one set of scores for each window is needed, got recent [16, 16]",
        ),
        (["plan", "SCORES", "--out", "x.json", "--kv-bytes", "9"], "context and head_size are needed too"),
        (["bench", "decode", "--out", "."], "--out must be a file"),
        (["sizes", "nowhere"], "there is no file"),
        (["conform", "numpy", "--load", "mine.py"], "takes the name of a module, mine"),
    ],
)
def test_errors_are_one_line(
    arguments: list, message: str, scores: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    LayerPlan(("full",) * 4, 4, 16).save("plan.json")
    files = {"SCORES": str(scores), "PLAN": "plan.json"}
    monkeypatch.setattr("sys.argv", ["zigzag", *(files.get(a, a) for a in arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.app_entry()
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error
    assert not (tmp_path / "x.json").exists()


def test_drafters_by_name() -> None:
    assert {*NAMED, *KINDS, "none", "mtp", "model", "retrieval"} == {*cli.DRAFTERS}


@pytest.mark.parametrize("drafter", ["none", *NAMED])
def test_generate_says_what_was_accepted(drafter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "load", lambda model, device: smollm2())
    arguments = ["generate", "1 2 3 4 1 2 3 4 1 2", "--drafter", drafter, "--new-tokens", "8"]
    arguments += ["--rule", "residual" if drafter == "lookahead" else "block"]  # its drafts are a tree
    result = RUN.invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert "8 tokens in" in result.output and "the cache holds" in result.output


def test_a_head_is_trained_and_drafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cli.train_drafter` leaves it where `generate --drafter` looks; a second kind learns from the same tokens."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("zigzag.models.draft_heads.files.SHIPPED", tmp_path / "none")
    small = ["--steps", "2", "--rows", "2", "--length", "16", "--tokens", "200", "--own", "0"]
    made = RUN.invoke(cli.app, ["train-drafter", "medusa", "student", "--model", "tiny-glm", *small])
    assert made.exit_code == 0 and "step 2 of 2" in made.output, made.output
    assert (tmp_path / "zigzag/heads/tiny-glm/student/README.md").is_file()
    for how in (["--drafter", "medusa"], ["--drafter", "student"], ["--recipe", "kangaroo"]):
        said = RUN.invoke(cli.app, ["generate", "def f(", "--model", "tiny-glm", "--new-tokens", "6", *how])
        if "kangaroo" in how:
            assert said.exit_code == 1 and "zigzag train-drafter exit" in str(said.exception)
        else:
            assert said.exit_code == 0 and "6 tokens in" in said.output, said.output


def test_refine_and_prove(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refined plan streams as many layers, is written, and can be measured beside its rivals."""
    monkeypatch.setattr(cli, "load", lambda model, device: smollm2())
    start, out = tmp_path / "plan.json", tmp_path / "better.json"
    plan = LayerPlan(tuple("full" if i < 10 else "streaming" for i in range(30)), 16, 112, num_kv_heads=3)
    plan.save(start)
    options = ["--length", "260", "--prompts", "1"]
    keep = tmp_path / "losses.json"
    few = ["--budget", "3", "--at-once", "2", "--keep", str(keep), *options]
    result = RUN.invoke(cli.app, ["refine", str(start), "--out", str(out), *few])
    assert result.exit_code == 0, result.output
    assert plan.map() in result.output and LayerPlan.load(out).num_full == 10
    assert f"next: zigzag prove {out}" in result.output
    assert "before," in result.output and "3 plans measured in" in result.output
    assert len(json.loads(keep.read_text())["losses"]) == 3
    result = RUN.invoke(cli.app, ["prove", str(out), *options])
    assert result.exit_code == 0, result.output
    assert f"next: zigzag generate 'Once upon a time' --plan {out}" in result.output
    assert "zigzag, 20 layers stream" in result.output and "random layers" in result.output
    assert "DuoAttention" not in result.output  # this plan holds no scores to make the head-wise one of


def test_refine_exhaustive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every plan is measured, the best one written."""
    monkeypatch.setattr(cli, "load", lambda model, device: (tiny_llama(4), tiny_tokenizer()))
    start, out = tmp_path / "plan.json", tmp_path / "best.json"
    LayerPlan(("full", "streaming", "streaming", "streaming"), 1, 3, num_kv_heads=2).save(start)
    monkeypatch.setattr("zigzag.measuring.prompts.passkey_prompts", short_prompts)
    result = RUN.invoke(cli.app, ["refine", str(start), "--out", str(out), "--exhaustive", "--length", "30"])
    assert result.exit_code == 0, result.output
    assert "1 of 4" in result.output and "Fsss" in result.output and "4 plans measured in" in result.output
    best = LayerPlan.load(out)
    assert best.num_full == 1 and best.map() in result.output


def short_prompts(tokenizer: object, length: int, *, count: int, seed: int) -> list:
    ids = [tuple(random_ids(1, length, seed + i)[0].tolist()) for i in range(count)]
    return [PasskeyPrompt(each[:-2], each[-2:], "", 0.5, seed) for each in ids]


def test_bench_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zigzag.cli.bench.load", lambda model, device: smollm2())
    out = tmp_path / "bench.json"
    options = ["--length", "100", "--task", "edit", "--new-tokens", "4", "--out", str(out)]
    result = RUN.invoke(cli.app, ["bench", *options])
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())["rows"]
    assert {row["method"] for row in rows} >= {"plain", "lookup", "streaming", "transformers lookup"}
    assert all(row["new_tokens"] == 4 and row["seconds"] > 0 for row in rows)


def test_a_typo_names_the_choices() -> None:
    result = RUN.invoke(cli.app, ["calibrate", "--out", "x.json", "--method", "gate_gradeint"])
    assert result.exit_code == 2 and "gate_gradient" in result.output


def test_evidence_page_from_committed_results(tmp_path: Path) -> None:
    """The committed page is what the committed results give, and the results hold every row of the issue."""
    pytest.importorskip("scipy", reason="scipy is not installed")
    from zigzag.evidence import measure as evidence
    from zigzag.evidence.page import write_page

    folder = Path(__file__).resolve().parent.parent / "docs" / "evidence"
    state = evidence.load(folder / "results.json")
    write_page(state, tmp_path)
    assert (tmp_path / "README.md").read_text() == (folder / "README.md").read_text()
    assert all(len(cell["right"]) == evidence.PROMPTS for cell in state["cells"].values())


def test_the_main_result_holds_the_best_rival_of_each_kind() -> None:
    """Also where its scores are others than those of the best layer plan; a better one takes its place."""
    pytest.importorskip("scipy", reason="scipy is not installed")
    from zigzag.evidence import measure as evidence
    from zigzag.evidence.page import _headline

    state = evidence.load(Path(__file__).resolve().parent.parent / "docs" / "evidence" / "results.json")
    every = evidence.rows(evidence.stored_scores(state))
    assert [name for name, _ in _headline(state, every) if "head by head" in name] == [
        "best head by head, 18: gate_gradient",
        "head by head, 20: gate_gradient",
        "best head by head, 20: lost_mass",
    ]
    for row in every:
        if row.kind == "heads" and row.method == "layer_loss" and row.num_streaming == 20:
            for length in (1000, 2000):
                state["cells"][f"{row.key}@{length}"] |= {"right": [True] * 50, "losses": [0.0] * 50}
    assert "best head by head, 20: layer_loss" in dict(_headline(state, every))


def test_damaged_evidence_is_refused(tmp_path: Path) -> None:
    from zigzag.evidence import measure as evidence
    from zigzag.reference.errors import PlanError

    (tmp_path / "results.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(PlanError, match="not a zigzag evidence file"):
        evidence.load(tmp_path / "results.json")
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(PlanError, match="a JSON file is needed"):
        evidence.load(tmp_path / "results.json")


def test_committed_evidence_meets_its_targets() -> None:
    """What README and page claim: 18 streaming layers within 0.1 of full attention's loss, bytes as computed."""
    from zigzag.evidence import measure as evidence

    state = evidence.load(Path(__file__).resolve().parent.parent / "docs" / "evidence" / "results.json")
    rows = {
        (r.kind, r.method, r.criterion, r.num_streaming): r.key for r in evidence.rows(evidence.stored_scores(state))
    }
    for length in (1000, 2000):
        full = state["cells"][f"{rows['full', '', '', 0]}@{length}"]
        plan = state["cells"][f"{rows['layers', 'gate_gradient', 'max', 18]}@{length}"]
        assert sum(plan["right"]) == sum(full["right"]) == 50
        assert np.mean(plan["losses"]) <= np.mean(full["losses"]) + 0.1
        assert sum(state["cells"][f"{rows['none', '', '', 30]}@{length}"]["right"]) == 0
    assert all(measured == said for measured, said, _ in state["cache_bytes"].values())


def test_rules_for_trees_are_for_drafters_of_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "load", lambda *_: pytest.fail("a model was loaded first"))
    for rule, known in RULES.items():
        for drafter in DRAFTERS:
            fits = known.tree if drafter == TREES else known.chain
            if fits:
                check_rule(rule, drafter)
                continue
            with pytest.raises(ZigzagError, match=f"--rule {rule} is for {'chains' if drafter == TREES else 'trees'}"):
                check_rule(rule, drafter)
    with pytest.raises(ZigzagError, match="--rule traversal is for trees"):
        RUN.invoke(cli.app, ["generate", "x", "--rule", "traversal"], catch_exceptions=False)


def test_a_rule_for_trees_runs() -> None:
    words = ["generate", "def area(", "--model", "tiny-glm", "--new-tokens", "2", "--drafter", "lookahead"]
    result = RUN.invoke(cli.app, [*words, "--rule", "traversal", "--temperature", "1"])
    assert result.exit_code == 0, result.output


def test_eval_checks_its_arguments_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "load", lambda *_: pytest.fail("a model was loaded first"))

    def told(*words: str) -> str:
        return str(RUN.invoke(cli.app, ["eval", "--tasks", "x", *words]).exception)

    assert "add --apply-chat-template" in told("--thinking") and "--apply-chat-template" in told(
        "--fewshot-as-multiturn"
    )
    assert "name=value" in told("--gen-kwargs", "temperature")
    assert "there is no file" in told("--plan", str(tmp_path / "none.json"))
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert "pip install 'zigzag-attention[eval]'" in told()


def test_eval_reads_values() -> None:
    asked = {"temperature": 0.6, "max_gen_toks": 9, "do_sample": True, "until": "a=b"}
    assert evaluate.gen_arguments("temperature=0.6,max_gen_toks=9,do_sample=true,until=a=b") == asked
    assert evaluate.gen_arguments(None) == {}


def test_eval_hands_on_what_it_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}
    opened = object()
    monkeypatch.setattr(evaluate, "load", lambda model, device: (f"{model} on {device}", "tokenizer"))
    monkeypatch.setattr(harness, "open_tasks", lambda *names, **more: given.update(names=names, more=more) or opened)
    monkeypatch.setattr(harness, "evaluate", lambda *first, **more: given.update(first=first, **more) or {"results": 1})
    monkeypatch.setattr(harness, "tables", str)
    LayerPlan(("full",), 2, 6).save(tmp_path / "plan.json")
    out = tmp_path / "out.json"
    words = (
        "--tasks a,b --model m --limit 3 --num-fewshot 2 --batch-size 4 --apply-chat-template --no-thinking --seed 9"
    )
    words += f" --no-fewshot-as-multiturn --system-instruction Hi --gen-kwargs top_k=3 --max-length 50 --out {out}"
    words = (
        words.replace("--model m", "--model tiny-glm") + f" --plan {tmp_path / 'plan.json'} --include-path {tmp_path}"
    )
    result = RUN.invoke(cli.app, ["eval", *words.split()])
    assert result.exit_code == 0 and "'results': 1" in result.output, result.output
    assert json.loads(out.read_text()) == {"results": 1}
    assert given.pop("names") == (["a", "b"], tmp_path) and given.pop("more") == {"gen_kwargs": {"top_k": 3}}
    assert given.pop("first") == ("tiny-glm on cpu", "tokenizer", opened)
    assert given == {
        "plan": LayerPlan(("full",), 2, 6),
        "limit": 3,
        "num_fewshot": 2,
        "batch_size": 4,
        "seed": 9,
        "apply_chat_template": True,
        "fewshot_as_multiturn": False,
        "system_instruction": "Hi",
        "thinking": False,
        "gen_kwargs": {"top_k": 3},
        "max_length": 50,
    }
