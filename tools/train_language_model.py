"""Train the bundled language model: a byte-level BPE tokenizer and a small Llama, from a folder of
plain text.

    python tools/train_language_model.py BOOKS --work WORK [--minutes 60]

BOOKS holds one text file per book, a paragraph a line. The books named in HELD_OUT are never
trained on; the perplexity in the model card is theirs. WORK receives the tokenizer and the finished
model in fp16. `tools/generate_corpus.py` writes the bundled corpus with it.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HELD_OUT = ("alice-s-adventures-in-wonderland", "the-railway-children", "ozma-of-oz")
VOCABULARY, CONTEXT = 4096, 256
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
PUNCTUATION = str.maketrans(
    {"“": '"', "”": '"', "‘": "'", "’": "'", "—": "--", "_": None, "\t": " ", "…": "..."}
)


def read_books(folder: Path) -> tuple[list[list[str]], list[list[str]]]:
    """The paragraphs of every book, typography normalised to ASCII quotes and dashes -> (training,
    held out)."""
    train, held_out = [], []
    for path in sorted(folder.glob("*.txt")):
        text = path.read_text(encoding="utf-8").translate(PUNCTUATION)
        paragraphs = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
        (held_out if path.stem in HELD_OUT else train).append(paragraphs)
    return train, held_out


def train_tokenizer(books: list[list[str]]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(("\n".join(book) for book in books), trainer)
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
    )


def tokenize(
    books: list[list[str]], tokenizer: PreTrainedTokenizerFast
) -> tuple[np.ndarray, np.ndarray]:
    """All books as one row of token ids, each ending in EOS -> (ids [T], offsets at which a
    paragraph starts)."""
    ids, starts = [], []
    for book in books:
        for encoding in tokenizer.backend_tokenizer.encode_batch(
            [p + "\n" for p in book], add_special_tokens=False
        ):
            starts.append(len(ids))
            ids.extend(encoding.ids)
        ids.append(tokenizer.eos_token_id)
    return np.array(ids, np.int64), np.array(starts)


def windows(ids: np.ndarray, starts: np.ndarray, bos: int) -> torch.Tensor:
    """BOS and the CONTEXT - 1 tokens from each start -> [len(starts), CONTEXT]"""
    body = ids[starts[:, None] + np.arange(CONTEXT - 1)]
    return torch.from_numpy(np.concatenate([np.full((len(body), 1), bos), body], axis=1))


@torch.no_grad()
def perplexity(
    model: LlamaForCausalLM, books: list[list[str]], tokenizer: PreTrainedTokenizerFast
) -> dict:
    """Held-out cross-entropy over consecutive windows of CONTEXT tokens, per token and per UTF-8
    byte."""
    ids, _ = tokenize(books, tokenizer)
    rows = windows(ids, np.arange(0, len(ids) - CONTEXT, CONTEXT - 1), tokenizer.bos_token_id)
    model.eval()
    nats = sum(model(b, labels=b).loss.item() * len(b) for b in rows.split(16)) / len(rows)
    model.train()
    tokens_per_byte = len(ids) / sum(len(p.encode()) + 1 for book in books for p in book)
    return {
        "perplexity_per_token": math.exp(nats),
        "perplexity_per_byte": math.exp(nats * tokens_per_byte),
        "bits_per_byte": nats * tokens_per_byte / math.log(2),
        "bytes_per_token": 1 / tokens_per_byte,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("books", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    args.work.mkdir(parents=True, exist_ok=True)

    train_books, held_out = read_books(args.books)
    tokenizer = train_tokenizer(train_books)
    tokenizer.save_pretrained(args.work / "model")
    ids, starts = tokenize(train_books, tokenizer)
    starts = starts[starts < len(ids) - CONTEXT]
    print(f"{len(ids):,} training tokens, {len(starts):,} paragraphs", flush=True)

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimisers = [
        torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    generator = torch.Generator().manual_seed(0)
    compiled = torch.compile(model)
    step, begun = 0, time.perf_counter()
    while (progress := (time.perf_counter() - begun) / (60 * args.minutes)) < 1:
        rate = args.lr * min(
            1, (step + 1) / 100, (1 - progress) / 0.4
        )  # constant, then a linear decay over the last 40 %
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
        batch = windows(
            ids,
            starts[torch.randint(len(starts), (args.batch_size,), generator=generator)],
            tokenizer.bos_token_id,
        )
        with torch.autocast("cpu", torch.bfloat16):
            loss = compiled(batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        step += 1
        if step % 50 == 0:
            spent = time.perf_counter() - begun
            speed = step * batch.numel() / spent
            print(
                f"step {step} loss {loss.item():.3f} {speed:,.0f} tokens/s {spent / 60:.1f} min",
                flush=True,
            )
    model = model.half().float()  # the numbers below are those of the fp16 weights that ship
    result = {
        "steps": step,
        "training_tokens": step * args.batch_size * CONTEXT,
        **perplexity(model, held_out, tokenizer),
    }
    print(result)
    model.half().save_pretrained(args.work / "model")
    (args.work / "training.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
