"""The `bitlens` command: parses, calls one function, prints."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable

import tyro

from bitlens.cli.codes import compress, decompress, entropy
from bitlens.cli.faithfulness import faithfulness
from bitlens.cli.features import features
from bitlens.cli.interpret import interpret
from bitlens.cli.labels import labels
from bitlens.cli.match import match
from bitlens.cli.runs import encode, evaluate, train
from bitlens.cli.stores import harvest, import_
from bitlens.cli.whole import bench, demo
from bitlens.errors import BitlensError, Interrupted


def study() -> None:
    """Whole experiments, each one command: bitlens study synthetic, sequence, icl or compare."""
    raise BitlensError(
        "Name a study: bitlens study synthetic, sequence, icl or compare; each explains itself with --help."
    )


COMMANDS = {
    "demo": demo, "harvest": harvest, "import": import_, "train": train, "encode": encode, "evaluate": evaluate,
    "faithfulness": faithfulness, "entropy": entropy, "features": features, "interpret": interpret, "labels": labels, "match": match, "compress": compress, "decompress": decompress, "study": study,
    "bench": bench,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit status: 0 done, 1 stopped or failed, 2 bad input."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode loses a sign, not the result
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments in (["--version"], ["-V"]):
        from bitlens import __version__

        print(f"bitlens {__version__}")
        return
    try:
        if arguments[:1] == ["study"] and len(arguments) > 1:
            from bitlens.cli.studies import STUDIES

            _call(STUDIES, "bitlens study", arguments[1:], "Whole experiments: each ends in a table and figures.")
        else:
            _call(COMMANDS, "bitlens", arguments, "Turn the hidden states of a language model into bits.")
    except Interrupted as stopped:
        sys.exit(_fail(str(stopped), 1))
    except BitlensError as error:
        sys.exit(_fail(str(error), 2))
    except OSError as error:
        sys.exit(_fail(f"{error.filename or 'A file'} could not be read or written: {error.strerror or error}.", 2))
    except KeyboardInterrupt:
        sys.exit(_fail("Stopped.", 128 + signal.SIGINT))


def _call(commands: dict[str, Callable[..., None]], name: str, arguments: list[str], description: str) -> None:
    tyro.extras.subcommand_cli_from_dict(
        commands, prog=name, args=arguments, description=description,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
    )  # fmt: skip


def _fail(sentence: str, status: int) -> int:
    from bitlens import show

    show.err.print(sentence, markup=False, soft_wrap=True)
    return status
