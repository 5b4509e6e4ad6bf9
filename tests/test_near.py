"""Names near a mistyped one."""

from pathlib import Path

from zigzag.files.near import meant


def test_names_that_are_near(tmp_path: Path) -> None:
    for name in ("plan.json", "scores.json", "plan.txt"):
        (tmp_path / name).touch()
    (tmp_path / "plans").mkdir()
    assert meant(tmp_path / "plam.json") == f"; did you mean {tmp_path / 'plan.json'}?"
    assert meant(tmp_path / "plams") == "" and meant(tmp_path / "plams", fits=Path.is_dir).endswith("plans?")
    assert meant(tmp_path / "nowhere" / "plan.json") == "" and meant(tmp_path / "entirely else") == ""
    assert meant(tmp_path / "nope.json") == "" and meant(tmp_path / "score.json").endswith("scores.json?")
    assert meant("smolm2", ("smollm2", "tiny-glm"), lambda path: False) == "; did you mean smollm2?"
