"""The explorer: a page on a run's latents, served on this computer or written as a static copy."""

from pathlib import Path

from bitlens import markup

# of the page: its own, and the look that it shares with the reports
FILES = {
    path.name: path
    for path in sorted([*(Path(__file__).parent / "page").iterdir(), *markup.LOOK])
    if path.is_file()
}
