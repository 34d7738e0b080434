"""The site builds without a warning, and a browser fetches nothing of it from elsewhere."""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings")
playwright = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).parent.parent
CHROMIUM = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
FETCHED = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make site` does: strictly, so that a link or an anchor to nothing is an error."""
    folder = tmp_path_factory.mktemp("site")
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(line, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


class Fetched(HTMLParser):
    """What a browser loads with a page, without being asked."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.urls += [url or "" for name, url in attrs if FETCHED.get(tag) == name]


def test_pages_load_only_what_lies_beside_them(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 35
    for page in pages:
        urls = Fetched(page).urls
        assert urls, page
        base = site if page.name == "404.html" else page.parent
        for url in urls:
            assert not re.match(r"(https?:)?//", url), (page, url)
            path = re.split(r"[?#]", url)[0].lstrip("/")
            assert (base / path).exists(), (page, url)


def test_notebooks_and_names_are_on_their_pages(site: Path) -> None:
    audit = (site / "audit.html").read_text(encoding="utf-8")
    assert "An audit: from two groups of texts" in audit
    assert "latents differ; of the eight clearest" in audit  # an output
    assert 'id="bitlens.intervene"' in (site / "api" / "causal.html").read_text(encoding="utf-8")
    assert "[`" not in re.sub(r"<code>.*?</code>", "", audit, flags=re.DOTALL)


def test_a_browser_reads_and_searches_it(site: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base, asked, said = f"http://127.0.0.1:{server.server_port}/", [], []
        with playwright.sync_playwright() as api:
            browser = api.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM)
            page = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme="dark")
            page.on("request", lambda request: asked.append(request.url))
            page.on("console", lambda message: said.append(message.text))
            for name in ("index", "quick-start", "api/autoencoders", "audit"):
                page.goto(f"{base}{name}.html")
                width = page.evaluate("document.documentElement.scrollWidth")
                assert width <= 400, name
            page.set_viewport_size({"width": 1280, "height": 800})
            page.goto(f"{base}audit.html", wait_until="networkidle")  # its script listens
            box = page.locator("input.md-search__input")
            box.click()
            box.press_sequentially("steering")
            page.locator(".md-search-result__link").first.wait_for()
            browser.close()
        server.shutdown()
    assert {url for url in asked if not url.startswith(base)} == set()
    assert not said
