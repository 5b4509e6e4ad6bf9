"""Trained heads: what they read, that training and drafting see the same places, their files, their laws."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from draft_heads import KINDS, random_head  # noqa: E402
from generations import PLANS, prompts, target  # noqa: E402
from models import random_ids, tiny_glm4_moe, tiny_granite, tiny_llama  # noqa: E402
from test_staged import ROWS, TEXT, law, p_value, small  # noqa: E402

from zigzag import ArgumentError, ModelError, generate, load_head, load_model  # noqa: E402
from zigzag.chat.thinking import chat_prompt  # noqa: E402
from zigzag.generation.drafting import Request, drafter_of  # noqa: E402
from zigzag.generation.recipe_makers import WIDE  # noqa: E402
from zigzag.generation.recipes import arguments  # noqa: E402
from zigzag.models.draft_heads.files import CONFIG, PROBES, SHIPPED, WEIGHTS, own_weights, places, save_head  # noqa: E402
from zigzag.models.draft_heads.kinds import make_head  # noqa: E402
from zigzag.reference import best_tree  # noqa: E402
from zigzag.running.host import Host  # noqa: E402
from zigzag.training.heads.lessons import lessons, taught  # noqa: E402

TREE = tuple(best_tree([0.6, 0.2, 0.1], 8)[0])
SHAPES = {"chain": {}, "tree": {"parents": TREE}, "drawn": {"parents": TREE, "siblings": "without replacement"}}
FORCED = 4  # drafts that the test of places looks at
OF_TARGET = ("exit", "pass", "student")  # that read the text themselves


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [tiny_llama, tiny_glm4_moe])
def test_greedy_tokens_are_those_of_plain_decoding(make: Any, kind: str, shape: str) -> None:
    model = target(make)
    for plan in PLANS.values():
        options: dict[str, Any] = {"plan": plan, "temperature": 0, "max_new_tokens": 20}
        drafter = drafter_of(random_head(kind, model), **SHAPES[shape])
        for _ in range(2):  # what one call leaves in a drafter is nothing to the next
            drafted = generate(model, prompts(), drafter=drafter, **options)
            assert drafted.sequences == generate(model, prompts(), **options).sequences
        assert sum(drafted.statistics.reached) > 0


def said(model: Any, head: Any, row: list[int], place: int) -> list[Any]:
    """What a drafter draws from behind the first `place + 1` tokens of a row, its drafts being the row's own."""
    drafter, drawn = drafter_of(head), []

    def to_probs(logits: Any, sequences: Any) -> Any:
        drawn.append(logits.softmax(-1)[0])
        forced = torch.zeros_like(logits)
        forced[0, row[place + len(drawn)]] = 1
        return forced

    with torch.inference_mode(), Host(model) as host:
        for stage in drafter.stages:
            if stage.model is None:
                stage.open(host, model.config.vocab_size)
                draft_ = drafter.draft(_asked(model, row, place, to_probs))
            else:
                with Host(stage.model) as other:
                    stage.open(other, model.config.vocab_size)
                    draft_ = drafter.draft(_asked(model, row, place, to_probs))
    assert draft_.rows[0] == row[place + 1 : place + 1 + len(drawn)]
    return drawn


def _asked(model: Any, row: list[int], place: int, to_probs: Any) -> Request:
    return Request([row[: place + 1]], [FORCED], [0], 0, to_probs, hidden=[STATES[:place]])


STATES: Any = None


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_learned_is_what_is_drafted(kind: str) -> None:
    """The k-th lesson at a place is the law of the k-th draft there; a step to a side would be another law."""
    global STATES
    model = tiny_llama(4, dtype=torch.float64)
    head, tokens = random_head(kind, model), random_ids(1, 24)
    row, place = tokens[0].tolist(), 11
    with torch.no_grad():
        given = taught(model, head, tokens)
        STATES = given.states[0]
        drawn = said(model, head, row, place)
        found = {lesson.position: lesson for lesson in lessons(model, head, given, 1, 0)}
        for position, lesson in found.items():
            # Heads begin one place before, at the state that said the row's last token; vectors at some places alone.
            at = {"pass": _vector_place(place, tokens.shape[1], head), "student": place, "exit": place}.get(
                kind, place - 1
            )
            own = lesson.logits[0, at].softmax(-1)
            torch.testing.assert_close(drawn[position], own, atol=1e-9, rtol=1e-6)
            torch.testing.assert_close(lesson.target[0, at], given.probs[0, place + position].to(lesson.target.dtype))
            near = lesson.logits[0, [at - 1, at + 1]].softmax(-1)
            assert float((near - own).abs().max()) > 1e-3


def _vector_place(place: int, length: int, head: Any) -> int:
    """Which of the sorted places, drawn as for a lesson, it is."""
    count = getattr(head, "count", 1)
    drawn = torch.randperm(max(1, length - count - 1), generator=torch.Generator().manual_seed(0))[:16].sort().values
    return drawn.tolist().index(place) if place in drawn.tolist() else -1


@pytest.mark.parametrize("kind", ["medusa", "hydra", "eagle", "exit", "pass", "student"])
@pytest.mark.parametrize("shape", SHAPES)
def test_sampled_tokens_have_the_law_of_the_target(kind: str, shape: str) -> None:
    """Three tokens of 4,000 rows, counted."""
    model = small(1)
    options = {"parents": (-1, -1, 0), **({"siblings": "without replacement"} if shape == "drawn" else {})}
    drafter = drafter_of(random_head(kind, model, 0.4), **(options if shape != "chain" else {}))
    made = generate(model, [TEXT] * ROWS, drafter=drafter, max_new_tokens=3, seed=5)
    assert p_value(Counter(map(tuple, made.new_tokens)), law(model, 3)) > 1e-3


def test_a_head_reads_its_state_and_its_tokens() -> None:
    """Of Hydra's heads each reads all tokens since the state; Medusa's and blockwise ones none."""
    model, states = target(), torch.randn(2, 32, dtype=torch.float64)
    for kind, reads in (("medusa", False), ("blockwise", False), ("hydra", True)):
        head = random_head(kind, model)
        for k in range(1, head.count + 1):
            tokens = torch.ones(2, k, dtype=torch.int64)
            same = head(k, states, tokens)
            for place in range(k):
                other = tokens.clone()
                other[:, place] = 2
                assert bool((head(k, states, other) == same).all()) is not reads
            assert not bool((head(k, states + 1, tokens) == same).all())
        assert all(
            head.heads[0].state_dict()[n].data_ptr() != w.data_ptr() for n, w in head.heads[1].state_dict().items()
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_is_written_and_read(kind: str, tmp_path: Path) -> None:
    model = target()
    head, sizes = random_head(kind, model), KINDS[kind].sizes(model)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    grads = [weight.requires_grad for weight in model.parameters()]
    save_head(head, kind, sizes, model, tmp_path / kind)
    found = load_head(tmp_path / kind, model)
    for name, weight in own_weights(head).items():
        assert bool((own_weights(found)[name] == weight.bfloat16().to(weight.dtype)).all())
    assert all(bool((model.state_dict()[name] == weight).all()) for name, weight in before.items())
    assert [weight.requires_grad for weight in model.parameters()] == grads
    assert not own_weights(found).keys() & {"embed_tokens.weight", "lm_head.weight", "model.embed_tokens.weight"}
    half = tiny_llama(4, dtype=torch.float16)  # the same model in another precision
    assert next(load_head(tmp_path / kind, half).parameters()).dtype == torch.float16


def broken(folder: Path, how: str) -> None:
    """Damage a head's folder."""
    told = json.loads((folder / CONFIG).read_text())
    if how == "no JSON":
        (folder / CONFIG).write_text("{")
    elif how == "another format":
        (folder / CONFIG).write_text(json.dumps(told | {"format": "other"}))
    elif how == "another kind":
        (folder / CONFIG).write_text(json.dumps(told | {"kind": "medusas"}))
    elif how == "other sizes":
        (folder / CONFIG).write_text(json.dumps(told | {"sizes": told["sizes"] | {"count": 3}}))
    elif how == "cut":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10])
    elif how == "no weights":
        (folder / WEIGHTS).unlink()
    else:
        from safetensors.torch import load_file, save_file

        tensors = load_file(str(folder / WEIGHTS))
        next(iter(tensors.values())).view(-1)[0] = torch.nan
        save_file(tensors, str(folder / WEIGHTS))


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("no JSON", "a JSON file is needed"),
        ("another format", "format 'zigzag-draft-head' version 1 is needed"),
        ("another kind", "is damaged"),
        ("other sizes", "left over, of another shape or not finite, first heads.3"),
        ("cut", "missing or damaged"),
        ("no weights", "missing or damaged"),
        ("NaN", "not finite"),
    ],
)
def test_a_damaged_head(how: str, told: str, tmp_path: Path) -> None:
    model = target()
    save_head(random_head("medusa", model), "medusa", KINDS["medusa"].sizes(model), model, tmp_path)
    broken(tmp_path, how)
    with pytest.raises(ModelError, match=told):
        load_head(tmp_path, model)


def test_a_head_for_another_model(tmp_path: Path) -> None:
    model = target()
    save_head(random_head("medusa", model), "medusa", KINDS["medusa"].sizes(model), model, tmp_path)
    with pytest.raises(ModelError, match=r"trained for .* has num_hidden_layers 4, this model's is 3"):
        load_head(tmp_path, tiny_llama(3))
    with pytest.raises(ModelError, match="other weights in its norm and head"):
        load_head(tmp_path, tiny_llama(4, seed=1))
    with pytest.raises(ModelError, match=r"no folder medusaa; did you mean medusa\?"):
        load_head("medusaa", model)
    other, head = tiny_llama(4, dtype=torch.float64), load_head(tmp_path, model)
    # What `check_heads` refuses, before the prompt is read.
    with pytest.raises(ModelError, match="made over another model"):
        generate(other, [[1, 2, 3]], drafter=drafter_of(head), max_new_tokens=3)
    with pytest.raises(ModelError, match=r"torch.float32 on cpu, the model torch.float64"):
        generate(model, [[1, 2, 3]], drafter=drafter_of(head.float()), max_new_tokens=3)


def test_a_model_is_looked_at_in_whole_numbers() -> None:
    """SmolLM2's head has 49,152 x 576 numbers; single precision would look for one beyond the last."""
    found = places(49_152 * 576)
    assert (int(found[0]), int(found[-1])) == (0, 49_152 * 576 - 1) and len(found) == PROBES // 2
    assert bool((found.diff() > 0).all()) and int(places(1)[-1]) == 0


def test_the_heads_that_ship() -> None:
    """One of each kind for tiny-glm, 3 MB in all; each drafts what plain decoding gives, and some of it is accepted."""
    model, tokenizer = load_model("tiny-glm")
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3_000_000 and len(files) == 3 * len(KINDS)
    ids = chat_prompt(tokenizer, [{"role": "user", "content": "What is 3141+2718?"}], thinking=True)
    plain = generate(model, [ids], temperature=0, max_new_tokens=60)
    for kind in KINDS:
        drafted = generate(model, [ids], drafter=kind, temperature=0, max_new_tokens=60)
        assert drafted.sequences == plain.sequences
        assert drafted.statistics.tokens_per_verification > 1.5, kind
        card = (SHIPPED / "tiny-glm" / kind / "README.md").read_text()
        assert f"`zigzag train-drafter {kind}`" in card and "/work" not in card


def test_layers_begin_as_the_targets() -> None:
    """An early exit's as the one whose place it takes, a student's as the first and the last."""
    model = target()
    layers = model.get_decoder().layers
    pairs = [(make_head("exit", model, index=2).layer, layers[2])]
    pairs += zip(make_head("student", model, layers=2).model.layers, (layers[0], layers[-1]), strict=True)
    for own, other in pairs:
        for name, weight in own.state_dict().items():
            taken = other.state_dict()[name]
            assert bool((weight == taken).all()) and weight.data_ptr() != taken.data_ptr()


def test_a_damaged_head_of_another_model_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, heads = target(), tmp_path / "zigzag/heads"
    save_head(random_head("medusa", model), "medusa", KINDS["medusa"].sizes(model), model, heads / "b/medusa")
    (heads / "a/medusa").mkdir(parents=True)
    (heads / "a/medusa" / CONFIG).write_text("{}")
    assert load_head("medusa", model) is not None


@pytest.mark.parametrize("name", ["medusa", "hydra", "bita"])
def test_recipes_of_heads_that_draft_less(name: str) -> None:
    """Their trees are cut to what the head can."""
    model, kind = target(), {"bita": "pass"}.get(name, name)
    options = arguments(name, head=make_head(kind, model, count=2))
    assert 3 <= options["drafter"].longest < len(WIDE)
    drafted = generate(model, prompts(), **options, temperature=0, max_new_tokens=12)
    assert drafted.sequences == generate(model, prompts(), temperature=0, max_new_tokens=12).sequences


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("kind", KINDS)
def test_under_an_adapter(kind: str, tmp_path: Path) -> None:
    """A head made for the model drafts for the model with an adapter, and can be made over it."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = target()
    save_head(random_head(kind, model), kind, KINDS[kind].sizes(model), model, tmp_path)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"])).eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    plain = generate(adapted, prompts(), temperature=0, max_new_tokens=12)
    for head in (load_head(tmp_path, adapted), make_head(kind, adapted)):
        drafted = generate(adapted, prompts(), drafter=head, temperature=0, max_new_tokens=12)
        assert drafted.sequences == plain.sequences


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_itself_drafts(kind: str) -> None:
    model = target()
    drafted = generate(model, prompts(), drafter=random_head(kind, model), temperature=0, max_new_tokens=8)
    assert sum(drafted.statistics.drafted) > 0


def test_what_cannot_be() -> None:
    model = target()
    with pytest.raises(ArgumentError, match="is for trees: give parents"):
        drafter_of(make_head("medusa", model), siblings="without replacement")
    with pytest.raises(ArgumentError, match="most and stop both say"):
        drafter_of(make_head("medusa", model), 2, stop=3)
    with pytest.raises(ArgumentError, match="kind must be one of blockwise"):
        make_head("medusas", model)
    with pytest.raises(ArgumentError, match="medusa has the sizes count, width, got counts"):
        make_head("medusa", model, counts=2)
    with pytest.raises(ArgumentError, match="index must be 1 to 3, got 4"):
        make_head("exit", model, index=4)
    with pytest.raises(ArgumentError, match="4 heads draft no 5 tokens in a row"):
        drafter_of(make_head("medusa", model), stop=5)
    with pytest.raises(ArgumentError, match="3 vectors draft no 5 tokens in a row"):
        drafter_of(make_head("pass", model), parents=[-1, 0, 1, 2, 3])
    with pytest.raises(ModelError, match="scales its logits"):
        make_head("eagle", tiny_granite(3, logits_scaling=2.0))


def test_as_many_drafts_as_a_head_can() -> None:
    model = target()
    for kind, most in (("medusa", 4), ("pass", 4), ("eagle", 9), ("exit", 9), ("student", 9)):
        assert drafter_of(random_head(kind, model), 9).longest == most


def test_the_embedding_is_left_as_it_was() -> None:
    """Also by an error in the middle of a forward."""
    model = target()
    head = random_head("pass", model)
    embedding = model.get_input_embeddings()
    with pytest.raises(ZeroDivisionError), head.applied(model.get_decoder()):
        assert embedding(torch.tensor([head.first]))[0, 0] == head.vectors[0, 0]
        assert bool((embedding(torch.tensor([3]))[0] == embedding.weight[3]).all())
        raise ZeroDivisionError
    assert "forward" not in vars(embedding)
