"""Names of models that are none: what is said of each, without waiting for anybody."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")  # it brings huggingface_hub

import huggingface_hub as hub
from huggingface_hub import constants, errors

from zigzag.models.sources import NAMES, SMOLLM2, SMOLLM2_FILE, check_source, source_of
from zigzag.reference.errors import ModelError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.HfApi, "model_info", lambda *_, **__: pytest.fail("the hub was asked"))
    (tmp_path / "my-model").mkdir()
    (tmp_path / "my-model" / "config.json").write_text("{}")
    (tmp_path / "my-notes").mkdir()
    (tmp_path / "weights.gguf").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("smolm2", "there is no smolm2 here; did you mean smollm2?"),
        ("my-modle", "no folder my-modle; did you mean my-model?"),
        ("wieghts.gguf", "no such file: wieghts.gguf; did you mean weights.gguf?"),
        ("./my-modle", "is needed, got ./my-modle; did you mean my-model?"),
        ("my-notes", "the folder my-notes holds no config.json"),
        ("my-model", "the folder my-model holds no tokenizer"),
        ("a b/c", "no hub id"),
    ],
)
def test_slips_ask_nobody(source: str, words: str) -> None:
    with pytest.raises(ModelError) as said:
        check_source(source)
    assert words in str(said.value)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_what_is_damaged_is_said_before_what_is_missing(name: str, here: Path) -> None:
    (here / "my-model" / name).write_text('{"a": ')
    with pytest.raises(ModelError, match=name):
        check_source("my-model")


def test_a_folder_with_a_tokenizer(here: Path) -> None:
    (here / "my-model" / "tokenizer.json").touch()
    check_source("my-model")
    check_source("tiny-glm")
    check_source("weights.gguf")


def test_offline_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE forbids asking the hub"):
        check_source("someone/something")


def test_a_copy_of_the_hubs_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: "config.json")
    check_source("someone/something")


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (errors.RepositoryNotFoundError, "the hub has no such model"),
        (ConnectionError("refused"), "the hub cannot be reached (ConnectionError)"),
        (errors.GatedRepoError, None),
        (None, None),
    ],
)
def test_what_the_hub_says(raised: Any, words: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def info(self: object, name: str, timeout: float) -> None:
        if isinstance(raised, type):
            raise raised.__new__(raised)  # their constructors want an answer of the client's own library
        if raised is not None:
            raise raised

    monkeypatch.setattr(hub.HfApi, "model_info", info)
    if words is None:
        check_source("someone/something")
        return
    with pytest.raises(ModelError) as said:
        check_source("someone/something")
    assert words in str(said.value)


def test_what_scores_name_can_be_asked_for() -> None:
    assert source_of(SMOLLM2_FILE) == source_of("") == source_of(None) == SMOLLM2
    assert [source_of(name) for name in (*NAMES, "org/model")] == [*NAMES, "org/model"]
