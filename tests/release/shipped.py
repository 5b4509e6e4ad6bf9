"""What must be true of the archives of a release. Each check gives its faults as lines; none is good."""

import re
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable, Mapping
from email import message_from_bytes
from email.message import Message
from pathlib import Path, PurePosixPath

NAME = "zigzag-attention"
LIMIT = 12_000_000  # bytes of the wheel
CODE = (".py", ".cu", ".cuh", ".toml", ".typed")  # under LICENSE with the rest; anything else needs a note of its own
WEIGHTS = (".safetensors", ".gguf", ".npy", ".npz", ".pt", ".bin")  # outside the package these do
FOLDERS = {"zigzag/reference/": "reference/", "zigzag/backends/": "backends/", "zigzag/conformance/": "tests/parity/"}
NOT_SHIPPED = "tests/parity/internals/"  # tests of this repository's own backends
GENERATED = ("PKG-INFO", "setup.cfg")
EACH_FIELD = ("Name", "Version", "Summary", "Requires-Python", "License-Expression", "License-File", "Requires-Dist")


def members(archive: Path) -> dict[str, bytes]:
    """Files by name; of a sdist without the folder that everything lies in."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist() if not name.endswith("/")}
    with tarfile.open(archive) as sdist:
        files = ((member.name.partition("/")[2], sdist.extractfile(member)) for member in sdist if member.isfile())
        return {name: file.read() for name, file in files if file is not None}


def size_faults(wheel: Path, limit: int = LIMIT) -> list[str]:
    size = wheel.stat().st_size
    return [f"{wheel.name} has {size:,} bytes, and {limit:,} are allowed"] if size >= limit else []


def place(name: str) -> str:
    """Where a file of the wheel lies in the repository."""
    shipped = next((folder for folder in FOLDERS if name.startswith(folder)), "")
    return FOLDERS.get(shipped, "") + name.removeprefix(shipped)


def wheel_faults(wheel: Mapping[str, bytes], tracked: Mapping[str, bytes]) -> list[str]:
    """Against the files that git holds: the same bytes, all of the code, and nothing else."""
    files = {place(name): content for name, content in wheel.items() if ".dist-info/" not in name}
    wrong = [f"the wheel has {name}, which git does not hold" for name in sorted(set(files) - set(tracked))]
    wrong += [
        f"the wheel has another {name}" for name in sorted(files) if tracked.get(name, files[name]) != files[name]
    ]
    folders = ("zigzag/", *FOLDERS.values())
    code = (name for name in tracked if name.startswith(folders) and not name.startswith(NOT_SHIPPED))
    wanted = {name for name in code if name.endswith(CODE)}
    return wrong + [f"the wheel lacks {name}" for name in sorted(wanted - set(files))]


def sdist_faults(sdist: Mapping[str, bytes], tracked: Mapping[str, bytes]) -> list[str]:
    """All that git holds but for links, with the same bytes, and what the build writes."""
    files = {name: content for name, content in sdist.items() if name not in GENERATED and ".egg-info/" not in name}
    wrong = [f"the sdist lacks {name}" for name in sorted(set(tracked) - set(files))]
    wrong += [f"the sdist has {name}, which git does not hold" for name in sorted(set(files) - set(tracked))]
    return wrong + [
        f"the sdist has another {name}" for name in sorted(set(files) & set(tracked)) if files[name] != tracked[name]
    ]


def licence_faults(files: Mapping[str, bytes], licence: str) -> list[str]:
    """Weights, tokenizers, templates and their like lie below a README.md that names the project's licence.

    The nearest one counts. Another licence is a fault as well: its text would have to be shipped.
    """
    wrong = []
    for name in sorted(files):
        of_package = name.startswith("zigzag/") and not name.endswith((*CODE, "/README.md"))
        if of_package or name.endswith(WEIGHTS):
            note = next((f"{folder}/README.md" for folder in _above(name) if f"{folder}/README.md" in files), None)
            said = licence_of(files[note].decode()) if note else None
            if note is None:
                wrong.append(f"{name}: no README.md says under which licence it is")
            elif said is None or said.lower() != licence.lower():
                wrong.append(f"{name}: {note} says {f'the licence {said}' if said else 'nothing of a licence'}")
    return wrong


def _above(name: str) -> Iterable[PurePosixPath]:
    return (folder for folder in PurePosixPath(name).parents if folder.parts)


def licence_of(card: str) -> str | None:
    """What the head of a card says, between its lines of dashes."""
    head = re.match(r"---\n(.*?)^---$", card, flags=re.DOTALL | re.MULTILINE)
    found = re.search(r"^license: *(\S+)$", head[1], flags=re.MULTILINE) if head else None
    return found[1] if found else None


def metadata_of(files: Mapping[str, bytes]) -> Message:
    (name,) = (name for name in files if name == "PKG-INFO" or name.endswith(".dist-info/METADATA"))
    return message_from_bytes(files[name])


def metadata_faults(wheel: Mapping[str, bytes], sdist: Mapping[str, bytes], pyproject: str, version: str) -> list[str]:
    """Both archives say the same, and what pyproject.toml and the version say."""
    project = tomllib.loads(pyproject)["project"]
    found, other = metadata_of(wheel), metadata_of(sdist)
    wrong = [f"{key}: the wheel and the sdist differ" for key in EACH_FIELD if found.get_all(key) != other.get_all(key)]
    wanted = {
        "Name": NAME,
        "Version": version,
        "Summary": project["description"],
        "Requires-Python": project["requires-python"],
        "License-Expression": project["license"],
        "Description-Content-Type": "text/markdown",
    }
    wrong += [f"{key} is {found[key]}, not {value}" for key, value in wanted.items() if found[key] != value]
    licences = set(found.get_all("License-File", ())) == set(project["license-files"])
    if not licences or not any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel):
        wrong.append("the licence's text is not in the wheel")
    extras = set(found.get_all("Provides-Extra", ()))
    wrong += [f"no extra {name}" for name in sorted(set(project["optional-dependencies"]) - extras)]
    return wrong + [f"PyPI takes no address: {line}" for line in found.get_all("Requires-Dist", ()) if "@" in line]


def relative_links(description: str) -> list[str]:
    """What a description links to or shows by a path, which leads nowhere on PyPI: there is no such file beside it."""
    text = re.sub(r"^```.*?^```$|`[^`\n]+`(?!\])", "", description, flags=re.DOTALL | re.MULTILINE)  # code
    found = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"", text)
    return [link for pair in found for link in pair if link and not re.match(r"[a-z]+:|#", link)]


def changelog_faults(changelog: str, version: str, tagged: bool) -> list[str]:
    """The first heading is the version's, with its date; without a tag it is of a later one, and says so."""
    first = next((line for line in changelog.splitlines() if line.startswith("## ")), "no heading")
    if tagged:
        good = re.fullmatch(rf"## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", first)
        return [] if good else [f"CHANGELOG.md begins with '{first}', not with '## {version} (YEAR-MONTH-DAY)'"]
    heading = re.fullmatch(r"## (\d+\.\d+\.\d+) \(unreleased\)", first)
    if heading is None:
        return [f"CHANGELOG.md begins with '{first}', and without a tag that is '## X.Y.Z (unreleased)'"]
    base = re.match(r"[\d.]*\d(?=\.dev)", version)
    if base is None or _numbers(heading[1]) < _numbers(base[0]):
        return [f"CHANGELOG.md prepares {heading[1]}, and the version is {version}"]
    return []


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
