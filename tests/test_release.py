"""What `make release` checks, shown on archives with faults; the real archives are checked by test_packaging too."""

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from release import run, shipped
from release.shipped import changelog_faults, licence_faults, metadata_faults, sdist_faults, wheel_faults

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = """
[project]
description = "Short."
requires-python = ">=3.11"
license = "Apache-2.0"
license-files = ["LICENSE"]
[project.optional-dependencies]
torch = ["torch>=2.6"]
"""
METADATA = """\
Metadata-Version: 2.4
Name: zigzag-attention
Version: 0.2.0
Summary: Short.
Requires-Python: >=3.11
License-Expression: Apache-2.0
License-File: LICENSE
Requires-Dist: numpy>=1.26
Provides-Extra: torch
Requires-Dist: torch>=2.6; extra == "torch"
Description-Content-Type: text/markdown

Text.
"""
TRACKED = {
    "pyproject.toml": PYPROJECT.encode(),
    "LICENSE": b"licence",
    "docs/index.md": b"page",
    "reference/a.py": b"a",
    "zigzag/b.py": b"b",
    "tests/parity/c.py": b"c",
    "tests/parity/internals/d.py": b"d",
    "zigzag/models/e.json": b"e",
    "zigzag/models/README.md": b"---\nlicense: apache-2.0\n---\n# e\n",
}
INFO = "zigzag_attention-0.2.0.dist-info"
WHEEL = {
    "zigzag/reference/a.py": b"a",
    "zigzag/b.py": b"b",
    "zigzag/conformance/c.py": b"c",
    "zigzag/models/e.json": b"e",
    "zigzag/models/README.md": TRACKED["zigzag/models/README.md"],
    f"{INFO}/METADATA": METADATA.encode(),
    f"{INFO}/licenses/LICENSE": b"licence",
}
SDIST = {**TRACKED, "PKG-INFO": METADATA.encode(), "setup.cfg": b"", "zigzag_attention.egg-info/SOURCES.txt": b""}


def without(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {key: value for key, value in files.items() if key != name}


def test_good_archives_have_no_fault() -> None:
    assert wheel_faults(WHEEL, TRACKED) == sdist_faults(SDIST, TRACKED) == []
    assert licence_faults(WHEEL, "Apache-2.0") == licence_faults(SDIST, "Apache-2.0") == []
    assert metadata_faults(WHEEL, SDIST, PYPROJECT, "0.2.0") == []


def test_a_wheel_of_other_files_is_noticed() -> None:
    assert wheel_faults(without(WHEEL, "zigzag/conformance/c.py"), TRACKED) == ["the wheel lacks tests/parity/c.py"]
    assert wheel_faults(WHEEL | {"zigzag/x.so": b""}, TRACKED) == ["the wheel has zigzag/x.so, which git does not hold"]
    assert wheel_faults(WHEEL | {"zigzag/reference/a.py": b"z"}, TRACKED) == ["the wheel has another reference/a.py"]


def test_a_sdist_of_other_files_is_noticed() -> None:
    assert sdist_faults(without(SDIST, "docs/index.md"), TRACKED) == ["the sdist lacks docs/index.md"]
    assert sdist_faults(SDIST | {"out/x": b""}, TRACKED) == ["the sdist has out/x, which git does not hold"]
    assert sdist_faults(SDIST | {"LICENSE": b"MIT"}, TRACKED) == ["the sdist has another LICENSE"]


def test_a_large_wheel_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.whl"
    path.write_bytes(b"0" * 11_999_999)
    assert shipped.size_faults(path) == []
    path.write_bytes(b"0" * 12_000_000)
    assert shipped.size_faults(path) == ["x.whl has 12,000,000 bytes, and 12,000,000 are allowed"]


@pytest.mark.parametrize(
    ("note", "fault"),
    [
        (None, "no README.md says under which licence it is"),
        (b"# e\nlicense: apache-2.0\n", "zigzag/models/README.md says nothing of a licence"),
        (b"---\ntitle: e\n---\n", "zigzag/models/README.md says nothing of a licence"),
        (b"---\nlicense: mit\n---\n", "zigzag/models/README.md says the licence mit"),
    ],
)
def test_files_without_a_licence_are_noticed(note: bytes | None, fault: str) -> None:
    files = without(WHEEL, "zigzag/models/README.md") | ({"zigzag/models/README.md": note} if note else {})
    assert licence_faults(files, "Apache-2.0") == [f"zigzag/models/e.json: {fault}"]


def test_the_nearest_note_counts() -> None:
    """And weights need one wherever they lie, pages and results do not."""
    deep = WHEEL | {"zigzag/models/deep/w.safetensors": b""}
    assert licence_faults(deep, "Apache-2.0") == []
    (fault,) = licence_faults(deep | {"zigzag/models/deep/README.md": b"# w\n"}, "Apache-2.0")
    assert fault == "zigzag/models/deep/w.safetensors: zigzag/models/deep/README.md says nothing of a licence"
    (fault,) = licence_faults(SDIST | {"docs/x.json": b"", "tests/x.npz": b""}, "Apache-2.0")
    assert fault == "tests/x.npz: no README.md says under which licence it is"


@pytest.mark.parametrize(
    ("line", "other", "fault"),
    [
        ("Name: zigzag-attention", "Name: zigzag", "Name is zigzag, not zigzag-attention"),
        ("Requires-Python: >=3.11", "Requires-Python: >=3.10", "Requires-Python is >=3.10, not >=3.11"),
        ("License-Expression: Apache-2.0", "License: Apache", "License-Expression is None, not Apache-2.0"),
        ("License-File: LICENSE", "Keywords: x", "the licence's text is not in the wheel"),
        ("Provides-Extra: torch", "Keywords: x", "no extra torch"),
        ("Requires-Dist: numpy>=1.26", "Requires-Dist: x @ file:///x", "PyPI takes no address: x @ file:///x"),
        ("Description-Content-Type: text/markdown", "Keywords: x", "Description-Content-Type is None"),
    ],
)
def test_wrong_metadata_is_noticed(line: str, other: str, fault: str) -> None:
    text = METADATA.replace(line, other).encode()
    both = (WHEEL | {f"{INFO}/METADATA": text}, SDIST | {"PKG-INFO": text})
    assert fault in "\n".join(metadata_faults(*both, PYPROJECT, "0.2.0"))
    (first,) = metadata_faults(WHEEL, SDIST, PYPROJECT, "0.2.1")
    assert first == "Version is 0.2.0, not 0.2.1"


def test_archives_that_differ_are_noticed() -> None:
    other = SDIST | {"PKG-INFO": METADATA.replace("numpy>=1.26", "numpy>=2").encode()}
    assert metadata_faults(WHEEL, other, PYPROJECT, "0.2.0") == ["Requires-Dist: the wheel and the sdist differ"]


def test_links_that_lead_nowhere_on_pypi() -> None:
    text = "[a](docs/a.md#x), [b](https://b.org), [c](#c), ![d](d.png), `x[0](y)`\n\n```python\nx[0](y)\n```\n"
    assert shipped.relative_links(text) == ["docs/a.md#x", "d.png"]
    assert shipped.relative_links('<source srcset="dark.png"><img src="https://b.org/d.png">') == ["dark.png"]
    assert shipped.relative_links("[`code`](a.md)") == ["a.md"]


def test_remarks_name_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    made = run.Release(ROOT, ROOT / "out" / "none")
    monkeypatch.setattr(run.Release, "archives", ("wheel", "sdist"))
    for body, number in (("[a](a.md) ![b](b.png)", "2 of"), ("[a](https://a.org)", "")):
        files = {f"{INFO}/METADATA": f"{METADATA.rstrip()}\n\n{body}\n".encode()}
        monkeypatch.setattr(shipped, "members", lambda archive, files=files: files)
        assert "".join(made.remarks())[: len(number) or None] == number


@pytest.mark.parametrize(
    ("heading", "version", "tagged", "good"),
    [
        ("## 0.2.0 (2026-12-01)", "0.2.0", True, True),
        ("## 0.2.0 (unreleased)", "0.2.0", True, False),
        ("## 0.1.0 (2026-12-01)", "0.2.0", True, False),
        ("## 0.2.0 (unreleased)", "0.2.0.dev7", False, True),
        ("## 0.10.0 (unreleased)", "0.9.1.dev7", False, True),
        ("## 0.2.0 (unreleased)", "0.2.1.dev7", False, False),
        ("## 0.2.0 (2026-12-01)", "0.2.0.dev7", False, False),
        ("## 0.2.0 (unreleased)", "0.2.0", False, False),
        ("", "0.2.0.dev7", False, False),
    ],
)
def test_the_changelog_speaks_of_this_version(heading: str, version: str, tagged: bool, good: bool) -> None:
    assert (changelog_faults(f"# Changelog\n\n{heading}\n\n- x\n", version, tagged) == []) is good


def test_members_of_both_kinds(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        wheel.writestr("zigzag/b.py", b"b")
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as sdist:
        member = tarfile.TarInfo("x-1/zigzag/b.py")
        member.size = 1
        sdist.addfile(member, io.BytesIO(b"b"))
    assert shipped.members(tmp_path / "x.whl") == shipped.members(tmp_path / "x.tar.gz") == {"zigzag/b.py": b"b"}


def test_what_git_holds_here_is_licensed() -> None:
    """Without building: the files as they would be in a wheel."""
    files = run.tracked(ROOT)
    assert "zigzag/reference" not in files and "reference/attention.py" in files, "a link, and a file"
    assert licence_faults(files, "Apache-2.0") == []


def test_a_step_with_a_fault_is_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []

    def step(name: str, *faults: str) -> run.Step:
        return name, lambda: done.append(name) or list(faults)

    assert run.run([step("one"), step("two")]) and done == ["one", "two"]
    assert not run.run([step("three"), step("four", "it is wrong"), step("five")])
    assert done == ["one", "two", "three", "four"]
    assert "ok    three" in (said := capsys.readouterr().out) and "WRONG four" in said and "it is wrong" in said


def test_a_command_that_fails_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    code = "import os; print('PYTHONPATH' in os.environ, os.environ['HF_HUB_OFFLINE'])"
    assert run.call([sys.executable, "-c", code], tmp_path, tmp_path / "log") == ([], "False 1\n")
    (fault,), _ = run.call([sys.executable, "-c", "exit('bad')"], tmp_path, tmp_path / "log")
    assert fault.startswith("exit code 1 of ") and "bad" in fault
    assert "False 1" in (log := (tmp_path / "log").read_text()) and "bad" in log
    monkeypatch.setattr(run, "LIMIT", 0.2)
    (fault,), _ = run.call([sys.executable, "-c", "import time; time.sleep(9)"], tmp_path, tmp_path / "log")
    assert fault.startswith("exit code 124")


@pytest.fixture
def release(tmp_path: Path) -> run.Release:
    """Of a repository with the files above, and archives that are good."""
    clone = tmp_path / "clone"
    for name, content in (TRACKED | {"CHANGELOG.md": b"# Changelog\n\n## 0.2.0 (2026-12-01)\n"}).items():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes(content)
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    for words in (("init",), ("add", "."), ("commit", "-m", "one"), ("tag", "v0.2.0")):
        subprocess.run(["git", "-C", str(clone), *who, *words], check=True, capture_output=True)
    found = run.Release(clone, tmp_path / "out")
    found.dist.mkdir(parents=True)
    with zipfile.ZipFile(found.dist / "zigzag_attention-0.2.0-py3-none-any.whl", "w") as wheel:
        for name, content in WHEEL.items():
            wheel.writestr(name, content)
    with tarfile.open(found.dist / "zigzag_attention-0.2.0.tar.gz", "w:gz") as sdist:
        for name, content in (SDIST | {"CHANGELOG.md": found.tracked["CHANGELOG.md"]}).items():
            member = tarfile.TarInfo(f"zigzag_attention-0.2.0/{name}")
            member.size = len(content)
            sdist.addfile(member, io.BytesIO(content))
    return found


def test_a_tagged_release_names_what_to_upload(release: run.Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "call", lambda *_: ([], ""))
    assert (release.tag, release.version) == ("v0.2.0", "0.2.0")
    assert release.contents() == release.licences() == release.metadata() == []
    told = release.told()
    assert told[-2:] == ["Upload both:", f"  python -m twine upload {release.archives[0]} {release.archives[1]}"]
    assert f"{release.archives[0].stat().st_size:,} bytes" in told[1]
    release.tag = "v0.2.1"
    assert release.metadata() == ["the tag is v0.2.1, and the version 0.2.0"]


def test_a_release_without_a_tag_is_a_rehearsal(release: run.Release) -> None:
    release.tag = None
    told = "\n".join(release.told())
    assert "not to be uploaded" in told and "twine" not in told


def test_what_the_archives_lack_is_told(release: run.Release) -> None:
    release.tracked |= {"zigzag/new.py": b"", "docs/new.md": b""}
    assert release.contents() == [
        "the wheel lacks zigzag/new.py",
        "the sdist lacks docs/new.md",
        "the sdist lacks zigzag/new.py",
    ]


def test_quick_installs_nothing(release: run.Release) -> None:
    every, quick = release.steps(quick=False), release.steps(quick=True)
    assert every[: len(quick)] == quick and len(every) == len(quick) + 2


def test_a_wrong_import_is_noticed(release: run.Release, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tree that lies on the path, or of another version."""
    file = release.out / "empty/lib/python3.11/site-packages/zigzag/__init__.py"
    said = ""

    def call(command: list[str | Path], *_: Path) -> tuple[list[str], str]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        return [], said

    monkeypatch.setattr(run, "call", call)
    for said in (f"/elsewhere/zigzag/__init__.py {release.version}", f"{file} 0.1.0"):
        assert release.installed() == [f"imported was {said}, not 0.2.0 of {release.out / 'empty'}"]
    said = f"{file} 0.2.0"
    assert release.installed() == []
