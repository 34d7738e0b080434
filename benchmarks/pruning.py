"""One pruning pass and one regrowing pass at 8,192 latents."""

import argparse
import json
import time
from pathlib import Path

import torch

from bitlens.autoencoders.objective import Price
from bitlens.autoencoders.pruning import Parameters, code_rows, prune, regrow
from bitlens.seeding import generator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--d-in", type=int, default=512)
    parser.add_argument("--n-latents", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=32768)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    seed = generator(0, "pruning benchmark")
    d, n = args.d_in, args.n_latents
    # Rows with structure: sparse bits on random directions, heavy duplication among the latents
    # that read them.
    directions = torch.randn(d, d, generator=seed) / d**0.5
    rows = (torch.rand(args.rows, d, generator=seed) < 0.05).float() @ directions
    rows = (rows - rows.mean(0)) / rows.std()
    W_enc = torch.randn(d, n, generator=seed) / d**0.5
    z = (rows[:8192] @ W_enc).sort(0).values
    rates = 0.01 * 20 ** torch.rand(n, generator=seed)
    b_enc = -z.gather(0, ((1 - rates) * 8191).long()[None])[0]
    P = Parameters(W_enc, b_enc, torch.randn(n, d, generator=seed) * n**-0.5, torch.zeros(d))
    price = Price("onbit", 0.02)
    code_rows(rows[:256], P).transpose()
    prune(
        rows[:1024], Parameters(W_enc[:, :64], b_enc[:64], P.W_dec[:64], P.b_dec), price, 0.1
    )  # compiles the kernel
    begun = time.perf_counter()
    pruned, survivors = prune(rows, P, price, 0.1)
    middle = time.perf_counter()
    _, restarted = regrow(rows[:8192], pruned, price, 0.1, seed)
    ended = time.perf_counter()
    result = {
        "d_in": d,
        "n_latents": n,
        "rows": args.rows,
        "survivors": len(survivors),
        "prune_s": middle - begun,
        "restarted": len(restarted),
        "regrow_s": ended - middle,
        "threads": torch.get_num_threads(),
    }
    print(
        f"{n:,} latents, {args.rows:,} rows of {d}: pruning {result['prune_s']:.1f} s "
        f"({len(survivors):,} survive), regrowing {result['regrow_s']:.1f} s ({len(restarted):,} "
        f"restart), {result['threads']} threads"
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
