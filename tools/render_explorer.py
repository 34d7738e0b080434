"""Pictures of the explorer on the bundled model, for the docs.

python tools/render_explorer.py docs [DEMO]

DEMO: a folder that `bitlens demo` wrote; without it, the demo is run first.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

SIZE = {"width": 1280, "height": 860}
WORD = "king"  # of a latent that every training finds
TEXT = "The king gave the old woman a ring of gold, and she"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


def views(page: Page, address: str) -> dict[str, str]:
    """Addresses of what is shown, of the latent that is on at WORD most often."""
    page.goto(address)
    page.wait_for_selector(".grid-row")
    data = page.evaluate("fetch('api/latents.json').then((answer) => answer.json())")["data"]
    having = [i for i, tokens in enumerate(data["tokens"]) if tokens[:1] == [f" {WORD}"]]
    latent = max(having, key=lambda i: (data["f1"][i] or 0, data["rate"][i]))
    return {
        "latents": f"{address}#/latents?sort=-f1&range=rate:0.001:",
        "latent": f"{address}#/latent/{data['latent'][latent]}",
        "text": f"{address}#/text?t={TEXT.replace(' ', '+')}",
    }


def render(address: str, out: Path) -> None:
    chromium = shutil.which("chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=QUIET)
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        for name, view in views(page, address).items():
            page.goto("about:blank")
            page.goto(view)
            page.wait_for_selector(".grid-row, .examples mark, .bit-list li")
            if name == "text":
                page.get_by_role("button", name=re.compile("^Hold latent .* off")).first.click()
                page.wait_for_selector(".paired")
            page.wait_for_load_state("networkidle")
            page.evaluate("document.activeElement.blur()")
            page.screenshot(path=out / f"explorer-{name}.png")
        browser.close()


def serve(demo: Path, out: Path) -> None:
    explore = [sys.executable, "-m", "bitlens", "explore", str(demo / "bae")]
    explore += ["--codes", str(demo / "codes-bae"), "--store", str(demo / "store")]
    explore += ["--port", "0", "--no-browser"]
    with subprocess.Popen(explore, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            for line in server.stdout:
                if address := re.search(r"http://127\.0\.0\.1:\d+/", line):
                    render(address[0], out)
                    break
        finally:
            server.terminate()


def main() -> None:
    out, *given = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as scratch:
        demo = given[0] if given else Path(scratch) / "bitlens-demo"
        if not given:
            subprocess.run(
                [sys.executable, "-m", "bitlens", "demo", "--out", str(demo)], check=True
            )
        serve(demo, out)


if __name__ == "__main__":
    main()
