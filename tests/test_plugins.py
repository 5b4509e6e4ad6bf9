"""Backends of installed packages (entry points): found, and where one is broken, that one alone."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import zigzag
from zigzag import ops
from zigzag.backends import registry

POSITIONS = np.arange(3)
GOOD = "from zigzag.reference import visible\n"
BROKEN = {
    "import no_such_library": "could not be imported: No module named 'no_such_library'",
    "raise RuntimeError('no [bold]driver[/nothing]')": "could not be imported: RuntimeError: no [bold]driver[/nothing]",
    "def f(:": "could not be imported: SyntaxError",
    "raise SystemExit(3)": "could not be imported: SystemExit: 3",
    "": "has none of the ops",
    GOOD + "def unavailable(): return 'there is no card'": "cannot run here: there is no card",
    GOOD + "def unavailable(): return 1 / 0": "fails to say whether it can run: ZeroDivisionError",
    GOOD + "def device_name(): return 1 / 0": "fails to name its device: ZeroDivisionError",
}
Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package with one module, which an entry point names, as pip would leave it."""
    monkeypatch.syspath_prepend(tmp_path)

    def installing(name: str, source: str, target: str = "") -> None:
        (tmp_path / f"plugin_{name}.py").write_text(source)
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[zigzag.backends]\n{name} = plugin_{name}{target}\n")
        registry._entry_points.cache_clear()
        registry.forget_choices()

    yield installing
    monkeypatch.undo()
    for name in [name for name in sys.modules if name.startswith("plugin_")]:
        del sys.modules[name]
    registry._entry_points.cache_clear()
    registry.forget_choices()


def listed() -> dict[str, registry.BackendInfo]:
    return {info.name: info for info in zigzag.list_backends()}


def test_an_installed_backend_is_found(install: Install) -> None:
    before = listed()
    install("sound", GOOD + "DEVICE = 'abacus'\n")
    assert listed() == before | {"sound": registry.BackendInfo("sound", True, "", "abacus", ("visible",))}
    assert ops.visible(POSITIONS, POSITIONS, backend="sound").shape == (3, 3)
    with pytest.raises(zigzag.BackendError, match="'sound' is an installed package's"):
        zigzag.register_backend("sound", type("Mine", (), {"visible": lambda: None}))


@pytest.mark.parametrize(("source", "reason"), BROKEN.items(), ids=str)
def test_a_broken_one_is_listed_with_its_reason_and_breaks_nobody(install: Install, source: str, reason: str) -> None:
    before = listed()
    install("broken", source)
    install("sound", GOOD)
    found = listed()
    assert reason in found["broken"].reason and not found["broken"].available and not found["broken"].ops
    assert found["sound"].available and found == before | {name: found[name] for name in ("broken", "sound")}
    assert ops.visible(POSITIONS, POSITIONS, backend="sound").shape == (3, 3)
    assert ops.visible(POSITIONS, POSITIONS).shape == (3, 3)
    if "device" not in reason:
        with pytest.raises(zigzag.BackendError, match="backend 'broken' "):
            ops.visible(POSITIONS, POSITIONS, backend="broken")
        with pytest.raises(zigzag.BackendError, match="backend 'broken' "), zigzag.use_backend("broken"):
            pass


def test_an_object_that_is_not_there(install: Install) -> None:
    install("broken", GOOD, ":no_such_object")
    assert "AttributeError" in listed()["broken"].reason
    assert ops.visible(POSITIONS, POSITIONS).shape == (3, 3)


def test_info_shows_the_reason(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that looks like rich's markup."""
    testing = pytest.importorskip("typer.testing", reason="typer is not installed")
    pytest.importorskip("rich", reason="rich is not installed")
    from zigzag.cli import app as cli

    source = "raise RuntimeError('no [bold]driver[/nothing]')"
    install("broken", source)
    monkeypatch.setattr(cli.console, "width", 200, raising=False)
    result = testing.CliRunner().invoke(cli.app, ["info"])
    assert result.exit_code == 0, result.output
    assert BROKEN[source] in result.output and "numpy" in result.output


def test_a_module_that_was_registered_by_name() -> None:
    """It is imported when it is asked for; what is wrong is told then, as for an installed one."""
    zigzag.register_backend("mine", "no_such_module")
    try:
        assert "No module named 'no_such_module'" in listed()["mine"].reason
        assert listed()["numpy"].available
    finally:
        zigzag.unregister_backend("mine")
