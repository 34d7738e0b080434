"""Write the bundled corpus: text that the bundled language model makes up itself, a document a
line.

    python tools/generate_corpus.py MODEL OUT.jsonl.gz [--documents 1500]

Every document starts from the BOS token alone and is cut after its last whole sentence.
"""

import argparse
import gzip
import json
import re
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MIN_CHARACTERS = 300


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--documents", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=100)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    length = model.config.max_position_embeddings
    texts: list[str] = []
    while len(texts) < args.documents:
        begin = torch.full((args.batch_size, 1), tokenizer.bos_token_id)
        ids = model.generate(
            begin,
            attention_mask=torch.ones_like(begin),
            do_sample=True,
            temperature=0.9,
            top_p=0.97,
            top_k=0,
            max_length=length,
            pad_token_id=tokenizer.pad_token_id,
        )
        for text in tokenizer.batch_decode(ids, skip_special_tokens=True):
            whole = re.match(r".*[.!?][\"')]*(?=\s|$)", text, re.DOTALL)
            if whole and len(whole[0]) >= MIN_CHARACTERS and "\ufffd" not in whole[0]:
                texts.append(whole[0].strip())
        print(f"{len(texts)} documents", flush=True)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[: args.documents])
    args.out.write_bytes(gzip.compress(lines.encode(), 9, mtime=0))
    tokens = sum(
        len(ids)
        for ids in tokenizer(texts[: args.documents], add_special_tokens=False)["input_ids"]
    )
    print(
        f"{args.out}: {tokens:,} tokens, {len(lines):,} bytes, {args.out.stat().st_size:,} "
        "compressed"
    )


if __name__ == "__main__":
    main()
