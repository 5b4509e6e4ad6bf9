"""Training of draft heads, in seconds on small models: it helps, breaks off, goes on, refuses what is not its own.

What each kind is taught at which place stands in tests/test_draft_heads.py.
"""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from draft_heads import KINDS, random_head  # noqa: E402
from glms import one_thread  # noqa: E402, F401
from models import random_ids, tiny_glm4_moe, tiny_llama, tiny_tokenizer  # noqa: E402
from trainings import Clock  # noqa: E402

from zigzag import ArgumentError, ModelError, generate, load_head  # noqa: E402
from zigzag.generation.drafting import drafter_of  # noqa: E402
from zigzag.measuring.corpus import Corpus, read_corpus  # noqa: E402
from zigzag.models.draft_heads.files import own_weights  # noqa: E402
from zigzag.training import state as files  # noqa: E402
from zigzag.training.heads import text  # noqa: E402
from zigzag.training.heads.config import HeadTraining  # noqa: E402
from zigzag.training.heads.lessons import Lesson, divergence, lessons, overlap, taught  # noqa: E402
from zigzag.training.heads.train import HeadRun, train_head  # noqa: E402


class Stopped(Exception):
    """What a test breaks a run off with."""


def quiet(said: str) -> None:
    """Nothing is shown."""


def model(seed: int = 0) -> Any:
    return tiny_llama(3, seed=seed, vocab_size=256, initializer_range=0.2)


def setting(kind: str = "medusa", **changes: Any) -> HeadTraining:
    small = {"steps": 12, "rows": 4, "length": 32, "tokens": 2000, "own": 0.3, "log_every": 3, "save_every": 6}
    return HeadTraining(kind=kind, **{**small, **changes})


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns(kind: str, tmp_path: Path) -> None:
    """More drafts of the first position are accepted than before, by the model as it is now in its folder."""
    main = model()
    before = {name: weight.clone() for name, weight in main.state_dict().items()}
    assert train_head(setting(kind, steps=30, learning_rate=3e-3), main, tiny_tokenizer(), tmp_path, log=quiet)
    lines = [line for line in files.read_log(tmp_path) if "accepted" in line]
    assert lines[-1]["loss"] < lines[0]["loss"] and lines[-1]["accepted"][0] > lines[0]["accepted"][0]
    assert all(bool((main.state_dict()[name] == weight).all()) for name, weight in before.items())
    head = load_head(tmp_path, main)
    drafted = generate(main, [[1, 2, 3, 4]], drafter=drafter_of(head), temperature=0, max_new_tokens=8)
    assert drafted.sequences == generate(main, [[1, 2, 3, 4]], temperature=0, max_new_tokens=8).sequences
    card = (tmp_path / "README.md").read_text()
    assert f"`zigzag train-drafter {kind}`" in card and f"{lines[-1]['accepted'][0]:.2f}" in card


@pytest.mark.parametrize("kind", ["eagle", "pass"])
def test_broken_off_and_resumed(kind: str, tmp_path: Path) -> None:
    """Bit for bit, wherever it stopped; the log has each step once."""
    main, config = model(), setting(kind)
    train_head(config, main, tiny_tokenizer(), tmp_path / "whole", log=quiet)

    def breaks(said: str) -> None:
        if "step 9 of" in said:
            raise Stopped

    with pytest.raises(Stopped):
        train_head(config, main, tiny_tokenizer(), tmp_path / "broken", log=breaks)
    assert train_head(config, main, tiny_tokenizer(), tmp_path / "broken", resume=True, log=quiet)
    (one, _), (other, _) = files.load_state(tmp_path / "whole"), files.load_state(tmp_path / "broken")
    assert one.keys() == other.keys() and all(bool((one[name] == other[name]).all()) for name in one)
    steps = [line["step"] for line in files.read_log(tmp_path / "broken") if "step" in line]
    assert steps == [3, 6, 9, 12]


def test_what_it_cannot_go_on_with(tmp_path: Path) -> None:
    main, tokenizer = model(), tiny_tokenizer()
    with pytest.raises(ModelError, match="--resume needs"):
        train_head(setting(), main, tokenizer, tmp_path / "none", resume=True, log=quiet)
    train_head(setting(), main, tokenizer, tmp_path, log=quiet)
    with pytest.raises(ArgumentError, match="holds a run"):
        train_head(setting(), main, tokenizer, tmp_path, log=quiet)
    for config, other in ((setting(seed=1), main), (setting(), model(1))):
        with pytest.raises(ModelError, match="other settings or another model"):
            train_head(config, other, tokenizer, tmp_path, resume=True, log=quiet)


def test_a_loss_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends the run; the head of the last good steps stays."""
    main = model()
    step = HeadRun.step

    def breaks(self: HeadRun) -> Any:
        loss = step(self)
        return loss * torch.nan if self.step_number > 7 else loss

    monkeypatch.setattr(HeadRun, "step", breaks)
    with pytest.raises(ModelError, match=r"the loss is nan at step 9.* smaller --learning-rate"):
        train_head(setting(), main, tiny_tokenizer(), tmp_path, log=quiet)
    assert files.load_state(tmp_path)[1]["step"] == 6 and load_head(tmp_path, main) is not None


def test_the_card_has_the_last_line(tmp_path: Path) -> None:
    """However few there are, each once; vectors draft from the second token on."""
    for kind, first in (("medusa", "draft 1"), ("pass", "draft 2")):
        train_head(setting(kind), model(), tiny_tokenizer(), tmp_path / kind, log=quiet)
        card = (tmp_path / kind / "README.md").read_text()
        assert [line.split()[1] for line in card.splitlines() if line[2:3].isdigit()] == ["3", "6", "9", "12"]
        assert f"| step | loss | {first} |" in card and "12 steps of 12" in card


def test_the_card_has_a_licence_where_the_model_is_ours(tmp_path: Path) -> None:
    """What another model's licence asks of a head for it is not for us to say."""
    main = model()
    for name in ("tiny-glm", "another"):
        main.config._name_or_path = f"folder/{name}"
        train_head(setting(), main, tiny_tokenizer(), tmp_path / name, log=quiet)
    ours, others = ((tmp_path / name / "README.md").read_text() for name in ("tiny-glm", "another"))
    assert ours.startswith("---\nlicense: apache-2.0\n---\n# medusa") and others.startswith("# medusa")


def test_half_precision_without_range() -> None:
    with pytest.raises(ModelError, match="load the model in bfloat16 or float32"):
        HeadRun(setting(), model().half(), {})


def test_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many steps as fit; the schedule is that of these steps."""
    main, streams, clock = model(), {}, Clock()
    step = HeadRun.step

    def takes_a_second(self: HeadRun) -> Any:
        clock.now += 1
        return step(self)

    monkeypatch.setattr(HeadRun, "step", takes_a_second)
    monkeypatch.setattr("zigzag.training.loop.monotonic", clock)
    assert train_head(setting(steps=100_000), main, tiny_tokenizer(), tmp_path, streams, seconds=31, log=quiet)
    first, *lines = files.read_log(tmp_path)
    assert first["config"]["steps"] == 18  # 0.9 of the 20 seconds that 11 tried steps leave
    assert lines[-1]["step"] == 18 and lines[-1]["seconds"] == 18 and len(streams["training"]) == 2000


def test_tokens_are_shared_by_several_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main, streams = model(), {}
    train_head(setting("medusa"), main, tiny_tokenizer(), tmp_path / "one", streams, log=quiet)
    monkeypatch.setattr("zigzag.training.heads.text.token_stream", None)
    train_head(setting("hydra"), main, tiny_tokenizer(), tmp_path / "two", streams, log=quiet)
    held = [files.load_state(tmp_path / name)[0]["tokens.training"] for name in ("one", "two")]
    assert bool((held[0] == held[1]).all())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kind": "medusas"}, "kind must be one of blockwise"),
        ({"divergence": "both"}, "divergence must be forward or reverse"),
        ({"steps": 0}, "steps must be 1 or more"),
        ({"own": 1.5}, "own must be 0 to 1"),
        ({"learning_rate": 0.0}, "must be above 0"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        setting(**changes)


def test_too_little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus(["a" * 20], ["b" * 20])
    with pytest.raises(ArgumentError, match="20 tokens are too few for rows of 32"):
        text.token_stream(model(), tiny_tokenizer(), corpus, setting(own=0.0))
    with pytest.raises(ArgumentError, match="no text to learn from"):
        text.token_stream(model(), tiny_tokenizer(), Corpus([], []), setting(own=0.0))


def test_what_is_learned_from() -> None:
    """The asked shares; nothing of what is held out, nor of what the benches ask about; the same for the same seed."""
    main, tokenizer, corpus = model(), tiny_tokenizer(), read_corpus(60_000_000)
    config = setting(tokens=3000, own=0.5)
    found = text.token_stream(main, tokenizer, corpus, config)
    assert len(found) == 3000 and bool((found == text.token_stream(main, tokenizer, corpus, config)).all())
    other = text.token_stream(main, tokenizer, corpus, setting(tokens=3000, own=0.5, seed=1))
    assert not bool((found[:1500] == other[:1500]).all()) and bool((found[1500:] == other[1500:]).all())
    benched = __import__("inspect").getsource(text.BENCHED)
    assert benched in [*corpus.training, *corpus.held_out]
    only = text.corpus_tokens(tokenizer, [benched, "x" * 50], 100)
    assert tokenizer.decode(only) == "x" * 50
    coming = text.prompts(tokenizer, [benched, "y" * 900], 0, held_out=False)
    assert all(set(tokenizer.decode(next(coming))) == {"y"} for _ in range(20))


def test_rows_of_a_step() -> None:
    config, stream = setting(rows=3, length=8), torch.arange(100)
    first = text.batch(stream, config, 4)
    assert first.shape == (3, 8) and bool((first == text.batch(stream, config, 4)).all())
    assert bool((first.diff(dim=1) == 1).all()) and not bool((first == text.batch(stream, config, 5)).all())


def test_losses_and_acceptance() -> None:
    """Of two laws on two tokens, by hand."""
    logits = torch.tensor([[[0.75, 0.25]]]).log()
    lesson = Lesson(0, logits, torch.tensor([[[0.5, 0.5]]]))
    assert float(overlap(lesson)) == pytest.approx(0.75)
    assert float(divergence(lesson, "forward")) == pytest.approx(-(0.5 * -0.287682 + 0.5 * -1.386294), abs=1e-5)
    assert float(divergence(lesson, "reverse")) == pytest.approx(0.75 * 0.405465 + 0.25 * -0.693147, abs=1e-5)


def test_a_loss_is_made_of_its_lessons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later drafts count less, and how far a head's own states are from the target's counts a little."""
    made = [Lesson(k, torch.zeros(1, 1, 256), torch.full((1, 1, 256), 1 / 256), torch.tensor(2.0)) for k in (0, 1)]
    run = HeadRun(setting("eagle", decay=0.5, rows=1, length=16), model(), {"training": torch.arange(20)})
    touch = (next(iter(run.weights.values())) * 0).sum()  # so that there is something to learn
    monkeypatch.setattr(
        "zigzag.training.heads.train.lessons", lambda *given: [one._replace(logits=one.logits + touch) for one in made]
    )
    each = math.log(256) + 0.1 * 2.0
    assert float(run.step()) == pytest.approx(each + 0.5 * each, rel=1e-5)


def test_it_writes_greedily_and_drawn_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, int]] = []

    def writes(main: Any, rows: Any, *, temperature: float, seed: int, **options: Any) -> Any:
        seen.append((temperature, seed))
        return SimpleNamespace(sequences=[[1] * 900 for _ in rows])

    monkeypatch.setattr(text, "generate", writes)
    monkeypatch.setattr(text, "AT_ONCE", 1)
    found = text.own_tokens(model(), tiny_tokenizer(), ["a" * 900], 3000, 7, held_out=False)
    assert len(found) == 3000 and seen == [(0.0, 7), (1.0, 8), (0.0, 9), (1.0, 10)]


def test_the_rate_goes_up_and_down() -> None:
    config = setting(steps=100, learning_rate=1.0)
    rates = [config.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and max(rates) == rates[4] == 1 and rates[-1] == pytest.approx(0.1, abs=0.01)
    assert rates[4:] == sorted(rates[4:], reverse=True)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_all_of_a_head_and_nothing_else(kind: str) -> None:
    main = tiny_glm4_moe(3)
    head, tokens = random_head(kind, main), random_ids(2, 24)
    given = taught(main, head, tokens)
    total = sum(divergence(lesson, "forward") + lesson.state for lesson in lessons(main, head, given, 2, 0))
    own = own_weights(head)
    weights = {name: weight for name, weight in head.named_parameters() if name in own}
    grads = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    without = [name for name, grad in zip(weights, grads, strict=True) if grad is None or not bool(grad.any())]
    assert [name for name in without if "e_score" not in name] == []
    assert not given.probs.requires_grad and not given.states.requires_grad
    assert {lesson.position for lesson in lessons(main, head, given, 2, 0)} == {
        "eagle": {0, 1}, "exit": {0}, "student": {0}, "pass": {1, 2, 3},
    }.get(kind, {0, 1, 2, 3})  # fmt: skip
