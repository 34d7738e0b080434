"""A text in the language model: its tokens, their bits, and what comes next with bits held."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from bitlens.bits.packed import PackedBits
from bitlens.causal.intervene import intervene
from bitlens.errors import BitlensError
from bitlens.explorer.keeping import Record
from bitlens.explorer.subject import Subject
from bitlens.explorer.worker import Worker
from bitlens.hidden.documents import Corpus
from bitlens.hidden.models import LanguageModel
from bitlens.hidden.pieces import cut
from bitlens.hidden.text import ContextReader

if TYPE_CHECKING:  # a static copy needs no server
    from bitlens.explorer.asked import ContinueAsked, HoldAsked

TEXT_LIMIT = 20_000  # characters
TOKEN_LIMIT = 1024
NEXT, MOVED = 5, 10  # likeliest tokens after each token, and before and after a hold
SHOWN = 64  # bits of a token
COLDEST = 1e-3  # of temperatures; at lower ones logits overflow, and all draw the likeliest
BLOCK = 64  # tokens whose predictions are in memory at a time


class Pass(NamedTuple):
    """What one forward pass gives."""

    states: Tensor
    """`[tokens, d_in]`"""
    logits: Tensor
    """`[tokens, vocabulary]`"""


class Live:
    """The language model of a run's hidden states. Every method runs in the worker's thread."""

    def __init__(self, subject: Subject, worker: Worker) -> None:
        """BitlensError where no model can be named; it is loaded by `load`, which takes a while."""
        manifest, metadata = subject.codes.manifest, subject.autoencoder.metadata
        hooks = [manifest.get("hook") or metadata.get("hook")]
        if subject.autoencoder.transcodes:
            hooks.append(metadata.get("target_hook"))
        if not subject.has_texts or None in hooks:
            raise BitlensError("its hidden states were imported without their text or model")
        self.subject, self.worker = subject, worker
        self._hooks = [hook["module"] for hook in hooks if hook]
        self.max_norm = subject.autoencoder.outlier_norm
        self.loaded = False
        self.model: Any = None
        self.before: list[int] = []

    def load(self) -> None:
        """Load the model and try it, which also compiles what a first call compiles."""
        codes, device = self.subject.codes, self.subject.autoencoder.mean.device
        model = LanguageModel.again(
            codes.manifest, codes.path, self._hooks, device=str(device), causal=True
        )
        bos = self.subject.autoencoder.metadata.get("prepend_bos")
        room = model.longest_context() or TOKEN_LIMIT
        self.before = ContextReader(Corpus(()), model.tokenizer, room, bos=bos).before
        self.most = min(TOKEN_LIMIT, room)
        self.model, self.loaded = model, True
        self.text("A")

    # --- a text as it is --------------------------------------------------------------------------

    def tokens(self, text: str) -> list[int]:
        """What the model reads: the text's tokens after those that begin every context."""
        if len(text) > TEXT_LIMIT:
            raise BitlensError(
                f"The text has {len(text):,} characters; at most {TEXT_LIMIT:,} are read at once."
            )
        if not self.loaded:
            self.load()
        # half of a surrogate pair is no character
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids = self.model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if not ids:
            raise BitlensError("There is no text; write some.")
        if len(self.before) + len(ids) > self.most:
            most = self.most - len(self.before)
            raise BitlensError(f"The text has {len(ids):,} tokens; at most {most:,} are read.")
        return self.before + list(ids)

    @torch.inference_mode()
    def run(self, ids: Sequence[int]) -> Pass:
        """The model on these tokens."""
        states: dict[str, Tensor] = {}
        with self.model.reading(states, stop=False):
            logits = self._logits(ids)
        return Pass(states[self.model.hooks[0].name][0].float(), logits)

    def _logits(self, ids: Sequence[int]) -> Tensor:
        inputs = self.model.inputs(torch.tensor([list(ids)]))
        return self.model.model(**inputs, use_cache=False).logits[0]

    def text(self, text: str) -> Record:
        """Every token with its most surprising bits and the likeliest next tokens."""
        begun = time.perf_counter()
        ids = self.tokens(text)
        states, logits = self.run(ids)
        rows = zip(self.subject.words().joined(ids), self._bits(ids, states), strict=True)
        upcoming = [one for block in logits.split(BLOCK) for one in self._likeliest(block)]
        tokens = [
            {"t": piece, "position": position, "next": after, **bits}
            for position, ((piece, bits), after) in enumerate(zip(rows, upcoming, strict=True))
        ]
        return {"tokens": tokens, "milliseconds": _since(begun)}

    def left_out(self, ids: Sequence[int], states: Tensor) -> Tensor:
        """Which tokens no autoencoder is trained on: special ones, and those of outlying norm."""
        outlying = states.norm(dim=1).cpu() > self.max_norm
        return torch.isin(torch.tensor(list(ids)), self.model.special) | outlying

    @torch.inference_mode()
    def codes(self, states: Tensor) -> Tensor:
        """`[rows, n_latents]`, float32, on the CPU"""
        return self.subject.autoencoder.encode(states).float().cpu()

    def _bits(self, ids: Sequence[int], states: Tensor) -> list[Record]:
        subject = self.subject
        codes, left_out = self.codes(states), self.left_out(ids, states)
        on = (codes != 0) ^ subject.flipped
        found = []
        for row, (bits, left) in enumerate(zip(on, left_out.tolist(), strict=True)):
            latents = [] if left else bits.nonzero()[:, 0].tolist()
            latents.sort(key=lambda latent: subject.records[latent]["rate"])
            listed = []
            for latent in latents[:SHOWN]:
                record = subject.records[latent]
                one = {"latent": latent, "surprisal": record["surprisal"]}
                one["tokens"] = subject.tokens_of(latent)
                if not subject.autoencoder.binary:
                    one["value"] = float(codes[row, latent])
                listed.append(one)
            found.append({"bits": listed, "on": len(latents), "left_out": left})
        return found

    def _likeliest(self, logits: Tensor) -> list[list[Record]]:
        """The likeliest next tokens after each."""
        top = logits.float().softmax(-1).topk(NEXT, dim=-1)
        names = self._names(top.indices.flatten().tolist())
        pairs = zip(names, top.values.flatten().tolist(), strict=True)
        flat = [{"t": name, "p": p} for name, p in pairs]
        return [flat[i : i + NEXT] for i in range(0, len(flat), NEXT)]

    def _names(self, ids: list[int]) -> list[str]:
        return self.subject.words().alone(ids)

    # --- a text with latents held -----------------------------------------------------------------

    def hold(self, asked: HoldAsked) -> Record:
        """What comes next before and after. A bit is held in the page's sense, 1 is its rare state;
        a sparse autoencoder's latent at a value as it is in the codes."""
        begun = time.perf_counter()
        ids, positions, more = self.tokens(asked.text), asked.positions, asked.continue_
        if wrong := [p for p in positions or () if not -len(ids) <= p < len(ids)]:
            raise BitlensError(f"There is no position {wrong[0]} in a text of {len(ids)} tokens.")
        holds = ((int(latent), value) for latent, value in asked.holds.items())
        held = {latent: self._raw(latent, value) for latent, value in holds}
        settings = (self.model, self.subject.autoencoder, held, positions, asked.others)
        with torch.no_grad():
            holding = intervene(*settings)  # refuses what cannot be held
            before = self._logits(ids)[-1].float().log_softmax(-1)
            with holding:
                after = self._logits(ids)[-1].float().log_softmax(-1)
        ends: list[Record] = [{}, {}]
        if more is not None and more.tokens:
            ends[0] = {"continuation": self._continued(ids, more)}
            with intervene(*settings):
                ends[1] = {"continuation": self._continued(ids, more)}
        top = [side.topk(min(MOVED, len(side))).indices.tolist() for side in (before, after)]
        union = list(dict.fromkeys(top[0] + top[1]))
        p, q = before.exp(), after.exp()
        moved = (q - p).abs().topk(min(MOVED, len(p))).indices.tolist()
        names = dict(zip(union + moved, self._names(union + moved), strict=True))
        for end, side in zip(ends, (p, q), strict=True):
            end["next"] = [{"t": names[i], "p": float(side[i])} for i in union]
        return {
            "before": ends[0],
            "after": ends[1],
            "kl_div": float((p * (before - after)).sum()),
            "changes": [
                {"t": names[i], "before": float(p[i]), "after": float(q[i])} for i in moved
            ],
            "milliseconds": _since(begun),
        }

    def _raw(self, latent: int, value: float) -> float:
        """The value in the codes: of a bit that is on where it is 0 there, the page's 1 is a 0."""
        self.subject.record(latent)
        flips = self.subject.autoencoder.binary and bool(self.subject.flipped[latent])
        return 1 - value if flips else value

    def _continued(self, ids: list[int], how: ContinueAsked) -> str:
        """The text that the model goes on with; the same seed draws alike before and after."""
        limit = self.model.longest_context()
        most = how.tokens if limit is None else min(how.tokens, limit - len(ids))
        if most < 1:
            raise BitlensError("The text fills the model's context, so nothing can follow it.")
        prompt = torch.tensor([ids], device=self.model.device)
        sampling = {"do_sample": False}
        if how.temperature > COLDEST:
            sampling = {"do_sample": True, "temperature": how.temperature, "top_k": 0, "top_p": 1.0}
        devices = [prompt.device] if prompt.is_cuda else []
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(how.seed)
            out = self.model.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=most,
                use_cache=True,
                pad_token_id=self.model.tokenizer.pad_token_id or 0,
                stopping_criteria=[lambda tokens, scores, **_: self._stopped(tokens)],
                **sampling,
            )[0].tolist()
        special = set(self.model.special.tolist())
        kept = [token for token in out[len(ids) :] if token not in special]
        return cut(self.model.tokenizer, ids + kept, [len(ids)])[1]

    def _stopped(self, tokens: Tensor) -> Tensor:
        return torch.full((len(tokens),), self.worker.unwanted, device=tokens.device)

    # --- the corpus -------------------------------------------------------------------------------

    def packed(self, text: str, position: int) -> PackedBits:
        """The bits of one token of a text, a row."""
        ids = self.tokens(text)
        if not 0 <= position < len(ids):
            raise BitlensError(f"There is no position {position} in a text of {len(ids)} tokens.")
        states = self.run(ids).states
        if bool(self.left_out(ids, states)[position]):
            raise BitlensError(
                "This token is left out, as a special one or one of outlying norm; choose another."
            )
        return self.subject.autoencoder.encode_bits(states[position : position + 1])


def _since(begun: float) -> float:
    return round(1000 * (time.perf_counter() - begun), 1)
