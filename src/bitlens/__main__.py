"""`python -m bitlens` is the command `bitlens`."""

from bitlens.cli import main

main()
