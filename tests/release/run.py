"""Builds the release of what is committed, checks it, and prints what to upload; nothing is uploaded.

Built from a clone, so what is not committed is not in it. The archives and what each step printed are left in
out/release. Exit codes: 0 all is well, 1 something is wrong.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from release import shipped  # noqa: E402

OUT = ROOT / "out/release"
LIMIT = 1800  # seconds of a command
TESTS = ("tests/exact", "tests/plans", "tests/test_plans.py")  # of the unpacked sdist
PLAIN = "addopts=--import-mode=importlib --strict-markers"  # without pytest-benchmark, which `conform` does not bring
Step = tuple[str, Callable[[], list[str]]]


def call(command: Sequence[str | Path], folder: Path, log: Path) -> tuple[list[str], str]:
    """(faults, what it printed); nothing of this tree or its environment is on the path."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "ZIGZAG"))}
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            cwd=folder,
            env=kept | {"HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
        )
        printed, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired:
        printed, code = "", 124
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(words)}\n{printed}\n")
    last = (printed.strip().splitlines() or ["nothing printed"])[-1]
    return ([f"exit code {code} of {' '.join(words)}: {last}; see {log}"] if code else []), printed


def git(*words: str, folder: Path = ROOT) -> str:
    return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout.strip()


def tag_of(folder: Path) -> str | None:
    """The commit's tag, as in v0.2.0."""
    return next((tag for tag in git("tag", "--points-at", "HEAD", folder=folder).split() if tag[:1] == "v"), None)


def tracked(folder: Path) -> dict[str, bytes]:
    """What the commit holds, but for links."""
    names = git("ls-files", "-z", folder=folder).split("\0")
    return {name: (folder / name).read_bytes() for name in names if name and not (folder / name).is_symlink()}


class Release:
    """A clone, the archives made of it, and the steps in their order."""

    def __init__(self, clone: Path, out: Path) -> None:
        self.clone, self.out, self.dist, self.log = clone, out, out / "dist", out / "log.txt"
        self.tag = tag_of(clone)
        self.tracked = tracked(clone)

    def build(self) -> list[str]:
        command = [sys.executable, "-m", "build", "--outdir", self.dist, self.clone]
        return call(command, self.clone.parent, self.log)[0]  # not in the clone: a folder build/ may lie there

    @property
    def archives(self) -> tuple[Path, Path]:
        """(wheel, sdist)"""
        (wheel,), (sdist,) = self.dist.glob("*.whl"), self.dist.glob("*.tar.gz")
        return wheel, sdist

    @property
    def version(self) -> str:
        return self.archives[0].name.split("-")[1]

    def contents(self) -> list[str]:
        wheel, sdist = self.archives
        files = shipped.members(wheel)
        return [
            *shipped.size_faults(wheel),
            *shipped.wheel_faults(files, self.tracked),
            *shipped.sdist_faults(shipped.members(sdist), self.tracked),
        ]

    def licences(self) -> list[str]:
        return [
            fault
            for archive in self.archives
            for fault in shipped.licence_faults(shipped.members(archive), "Apache-2.0")
        ]

    def metadata(self) -> list[str]:
        wheel, sdist = (shipped.members(archive) for archive in self.archives)
        pyproject = self.tracked["pyproject.toml"].decode()
        wrong = shipped.metadata_faults(wheel, sdist, pyproject, self.version)
        if self.tag and self.tag != f"v{self.version}":
            wrong.append(f"the tag is {self.tag}, and the version {self.version}")
        wrong += shipped.changelog_faults(self.tracked["CHANGELOG.md"].decode(), self.version, self.tag is not None)
        return wrong + call([sys.executable, "-m", "twine", "check", "--strict", *self.archives], self.out, self.log)[0]

    def installed(self) -> list[str]:
        """The wheel with NumPy alone, then with what the demo and the suite want, away from the tree."""
        empty = self.out / "empty"
        shutil.rmtree(empty, ignore_errors=True)
        wheel, _ = self.archives
        python, limits = empty / "bin/python", ["-c", self.clone / "constraints.txt"]
        says = "import zigzag, zigzag.ops, zigzag.reference; print(zigzag.__file__, zigzag.__version__)"
        with tempfile.TemporaryDirectory() as name:
            away = Path(name)
            for command in (
                [sys.executable, "-m", "venv", empty],
                [python, "-m", "pip", "install", "-q", *limits, wheel],
                [python, "-c", says],
            ):
                wrong, printed = call(command, away, self.log)
                if wrong:
                    return wrong
            if printed.split() != [str(self.installed_file(empty)), self.version]:
                return [f"imported was {printed.strip()}, not {self.version} of {empty}"]
            return self.first_failure(
                [
                    [python, "-m", "pip", "install", "-q", *limits, f"{wheel}[all,conform]"],
                    [empty / "bin/zigzag", "demo", "--model", "tiny-glm"],
                    [empty / "bin/zigzag", "conform", "torch"],
                ],
                away,
            )

    @staticmethod
    def installed_file(empty: Path) -> Path:
        (found,) = empty.glob("lib/python*/site-packages/zigzag/__init__.py")
        return found

    def tests_of_the_sdist(self) -> list[str]:
        """Archives hold no links, so they are made, as docs/releasing.md says; then tests run on what was unpacked."""
        with tempfile.TemporaryDirectory() as name:
            shutil.unpack_archive(self.archives[1], name, filter="data")
            (top,) = Path(name).iterdir()
            for link, target in (("reference", "reference"), ("backends", "backends"), ("conformance", "tests/parity")):
                (top / "zigzag" / link).symlink_to(f"../{target}")
            command = [self.out / "empty/bin/python", "-m", "pytest", "-q", "-o", PLAIN, *TESTS]
            return self.first_failure([command], top)

    def first_failure(self, commands: Sequence[Sequence[str | Path]], folder: Path) -> list[str]:
        return next((wrong for command in commands if (wrong := call(command, folder, self.log)[0])), [])

    def steps(self, quick: bool) -> list[Step]:
        archives: list[Step] = [
            ("build the sdist, and the wheel of it", self.build),
            ("contents and size", self.contents),
            ("licences", self.licences),
            ("metadata, version and CHANGELOG", self.metadata),
        ]
        environment: list[Step] = [
            ("empty environment: import, demo, conform", self.installed),
            ("tests out of the sdist", self.tests_of_the_sdist),
        ]
        return archives if quick else archives + environment

    def remarks(self) -> list[str]:
        """What is no fault and is to be known before anything is uploaded."""
        description = shipped.metadata_of(shipped.members(self.archives[0])).get_payload()
        links = shipped.relative_links(str(description))
        said = "of README.md's links lead nowhere on PyPI, which has no files beside it; see docs/releasing.md"
        return [f"{len(links)} {said}"] if links else []

    def told(self) -> list[str]:
        """The files, and what to do with them."""
        lines = [f"zigzag-attention {self.version}, commit {git('rev-parse', '--short', 'HEAD', folder=self.clone)}"]
        for path in self.archives:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            lines.append(f"  {path}  {path.stat().st_size:,} bytes  sha256 {digest}")
        if self.tag is None:
            return [*lines, "A rehearsal, not to be uploaded: this commit has no tag. See docs/releasing.md."]
        return [*lines, "Upload both:", f"  python -m twine upload {' '.join(str(path) for path in self.archives)}"]


def run(steps: Sequence[Step], say: Callable[[str], None] = print) -> bool:
    """Whether all went well; the first step with a fault is the last."""
    for name, step in steps:
        begin = time.monotonic()
        wrong = step()
        say(f"{'WRONG' if wrong else 'ok   '} {name} ({time.monotonic() - begin:.0f} s)")
        for fault in wrong:
            say(f"      {fault}")
        if wrong:
            return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the archives alone, without the empty environment")
    given = parser.parse_args(arguments)
    if changed := git("status", "--porcelain"):
        print(f"not committed, and so not in the release: {len(changed.splitlines())} files")
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name, "zigzag")
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        release = Release(clone, OUT)
        well = run(release.steps(given.quick))
        if well:
            told = release.told() if not given.quick else ["The archives are well; nothing was installed."]
            print("\n".join([*release.remarks(), *told]))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
