"""Hooks of the site that `make site` builds of docs/: pages and pictures that lie elsewhere.

The notebooks of examples/, the changelog and CONTRIBUTING are pages without being copied; the
colours are those of the reports. A link to a file that is no page becomes its name, or leads to the
repository where `repo_url` says which.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
TEMPLATES = ROOT / "src" / "bitlens" / "templates"
MADE = {  # a file of the repository: the page that is made of it
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/first_steps.ipynb": "first-steps.md",
    "examples/audit.ipynb": "audit.md",
}
PAGES = {"README.md": "index.md", **MADE}  # where links to a file lead
LINK = re.compile(r"(?P<text>\[[^\]]*\])\((?P<target>[^)\s:]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """The files of docs/, and those made of what lies elsewhere."""
    made = {page: page_of(ROOT / path) for path, page in MADE.items()}
    made["icon.svg"] = (TEMPLATES / "icon.svg").read_text(encoding="utf-8")
    made["palette.css"] = palette((TEMPLATES / "palette.css").read_text(encoding="utf-8"))
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """The page with links that the site can follow."""
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]  # it is alone there
    sources = {name: path for path, name in MADE.items()}
    at = posixpath.dirname(sources.get(page.file.src_uri) or f"docs/{page.file.src_uri}")

    def link(match: re.Match[str]) -> str:
        text, (target, hash_, anchor) = match["text"], match["target"].partition("#")
        path = posixpath.normpath(posixpath.join(at, target))
        if not target or not (ROOT / path).exists():
            return match[0]
        inside = PAGES.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if inside is None:
            return f"{text}({config.repo_url}/blob/main/{path})" if config.repo_url else text[1:-1]
        here = posixpath.dirname(page.file.src_uri) or "."
        return f"{text}({posixpath.relpath(inside, here)}{hash_}{anchor})"

    return LINK.sub(link, markdown)


def page_of(path: Path) -> str:
    """The Markdown of a Markdown file or a notebook."""
    text = path.read_text(encoding="utf-8")
    return text if path.suffix == ".md" else "\n\n".join(cells(json.loads(text)))


def cells(notebook: dict[str, Any]) -> list[str]:
    """What a notebook says, asks and answers."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else fenced("python", source))
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            said = output.get("text") or data.get("text/plain", "")
            parts.append(fenced("text", "".join(said).rstrip()))
    return parts


def fenced(language: str, text: str) -> str:
    """A block of code."""
    return f"```{language}\n{text}\n```"


def palette(css: str) -> str:
    """The colours of the reports, by the site's names of light and dark."""
    for theme, scheme in (("light", "default"), ("dark", "slate")):
        css = css.replace(f':root[data-theme="{theme}"]', f'[data-md-color-scheme="{scheme}"]')
    return css
