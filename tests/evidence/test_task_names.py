"""Slips in names of own tasks."""

from pathlib import Path

import pytest

from zigzag.evidence import task_names
from zigzag.evidence.task_names import check_slips
from zigzag.reference.errors import ArgumentError


def test_slips_of_own_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.yaml").write_text("task: my_sums\ntag:\n  - my_sumx\n")
    check_slips(["my_sums", "my_sumx", "entirely_else"], tmp_path)
    check_slips(["my_sum"], None)
    check_slips(["my_sum"], tmp_path / "nowhere")
    with pytest.raises(ArgumentError, match=r"there is no task 'my_sum' .* did you mean my_sums\?"):
        check_slips(["my_sums", "my_sum"], tmp_path)
    monkeypatch.setattr(task_names, "_of_lm_eval", lambda name: name == "my_sum")
    check_slips(["my_sum"], tmp_path)


def test_names_of_lm_eval() -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    assert task_names._of_lm_eval("hellaswag") and not task_names._of_lm_eval("helaswag")
