"""What a budget of flips costs in distortion and buys in speed.

python benchmarks/flips.py RUN STORE [--figure docs/flips]
"""

import argparse
from pathlib import Path

import bitlens as bl
from bitlens.evaluation import evaluate
from bitlens.studies.figures import figure

BUDGETS = (0, 1, 2, 4, 8, 12, 16, 24, 32, 64)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--figure", type=Path, help="where the figure goes, without its ending")
    args = parser.parse_args()
    store, bae = bl.ActivationStore(args.store, 0.1), bl.BinaryAutoencoder.from_pretrained(args.run)
    numbers = {flips: evaluate(bae.coded(flips=flips), store, joint=False) for flips in BUDGETS}
    zero = evaluate(bae, store, joint=False)
    print("| flips | fvu | l0 | bits_marginal | rows / s |\n| ---: | ---: | ---: | ---: | ---: |")
    for name, n in [*numbers.items(), ("from zero, all", zero)]:
        print(
            f"| {name} | {n.fvu:.3f} | {n.l0:.1f} | {n.bits_marginal:.0f} | "
            f"{n.rows_per_second:,.0f} |"
        )
    if args.figure:
        with figure(args.figure, size=(5.4, 3.6)) as axes:
            panel = axes[0][0]
            panel.plot(
                BUDGETS, [n.fvu for n in numbers.values()], "o-", label="from the encoder's bits"
            )
            panel.axhline(
                zero.fvu, ls="--", color="#404040", label="from zero, until nothing gains"
            )
            panel.set(
                xlabel="flips a row, at most",
                ylabel="fraction of variance unexplained",
                ylim=(0, None),
            )
            panel.legend()


if __name__ == "__main__":
    main()
