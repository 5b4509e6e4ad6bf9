"""The site in a real browser, as `make look` asks: links, pictures, the width of a telephone, search.

It needs Playwright and a Chromium: $CHROMIUM, or `chromium` as Debian installs it.
"""

import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

WIDTH, HEIGHT = 390, 844  # a telephone's, in pixels
SEARCHED = "passkeys"
GENERATED = ("genindex.html", "search.html", "py-modindex.html")  # by Sphinx, and `_modules`, the sources

SEEN = """() => ({
  wide: document.documentElement.scrollWidth,
  ids: [...document.querySelectorAll('[id]')].map(e => e.id),
  links: [...document.querySelectorAll('a[href]')].map(e => e.getAttribute('href')),
  images: [...document.images].filter(e => !e.complete || !e.naturalWidth).map(e => e.getAttribute('src')),
})"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing: what is wrong is told at the end."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of the folder's files while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def pages_of(folder: Path) -> list[str]:
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.html"))
    return [name for name in found if name not in GENERATED and not name.startswith(("_modules/", "_static/"))]


def faults_of(folder: Path, page: Any, address: str) -> list[str]:
    """What is wrong with the site, a line for each fault."""
    names = pages_of(folder)
    if not names:
        return [f"{folder}: no page; build the site first: make docs"]
    seen: dict[str, dict[str, Any]] = {}
    for name in names:
        page.goto(address + name)
        page.evaluate("window.scrollTo(0, document.body.scrollHeight)")  # pictures may load when they come into sight
        page.wait_for_load_state("networkidle")
        seen[name] = page.evaluate(SEEN)
    faults = []
    for name, facts in seen.items():
        if facts["wide"] > WIDTH:
            faults.append(f"{name}: {facts['wide']} pixels wide, {WIDTH} are there")
        faults += [f"{name}: the picture {source} is not shown" for source in facts["images"]]
        faults += [f"{name}: the link {link} leads nowhere" for link in broken(name, facts["links"], seen, folder)]
    return faults + search_faults(page, address)


def broken(name: str, links: list[str], seen: dict[str, dict[str, Any]], folder: Path) -> list[str]:
    """Links of a page to files or places that are not there; those to other hosts are not followed."""
    found = []
    for link in links:
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        path, place = urldefrag(urljoin(name, link))
        path = unquote(path) or name
        there = (folder / path).is_file() or (folder / path / "index.html").is_file()
        if not there or (place and path in seen and unquote(place) not in seen[path]["ids"]):
            found.append(link)
    return found


def search_faults(page: Any, address: str) -> list[str]:
    page.goto(f"{address}search.html?q={SEARCHED}")
    try:
        page.wait_for_selector("#search-results li a", timeout=20_000)
    except Exception as error:
        return [f"search.html: {SEARCHED!r} is found nowhere ({type(error).__name__})"]
    return []


@contextmanager
def browser_page() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if path is None:
        sys.exit("look: no Chromium; install one (apt-get install chromium), or name it in CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        browser.close()


def main(folder: Path) -> int:
    with served(folder) as address, browser_page() as page:
        faults = faults_of(folder, page, address)
    print("\n".join(faults) or f"{len(pages_of(folder))} pages: links, pictures, width and search are right")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
