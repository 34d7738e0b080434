"""The files of the page: its own, and the look that it shares with the reports."""

from __future__ import annotations

from pathlib import Path

from bitlens import markup

FILES = {
    path.name: path
    for path in sorted([*(Path(__file__).parent / "page").iterdir(), *markup.LOOK])
    if path.is_file()
}
