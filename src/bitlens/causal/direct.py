"""What a direction in the residual stream does to a language model's next-token logits, past the
layers in between.

The direct path: a vector that a layer writes stays in the residual stream, and the final norm and
the head read it there ("logit lens", nostalgebraist 2020). What the layers in between make of it is
left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from bitlens.bits.codes import Columns
from bitlens.errors import BitlensError
from bitlens.hidden.documents import Corpus
from bitlens.hidden.hooks import attach
from bitlens.hidden.models import LanguageModel
from bitlens.hidden.store import OUTLIER_MULTIPLE
from bitlens.hidden.text import ContextReader

CONTEXTS, LENGTH = 16, 64  # of text, over which the state is averaged
# What is, or is added to, the residual stream
ADDED = ("hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out")


class DirectEffect:
    """Derivative of a model's own logits along directions in its residual stream.

    The model itself is differentiated in forward mode from its last block's output on, so its final
    norm, head, biases, logit scale and softcap count as they are. `state [d]`: the point at which
    it is, the mean of that output over some text.
    """

    def __init__(self, model: LanguageModel, contexts: Sequence[list[int]], skip: int = 0) -> None:
        """model: a whole causal model, in float32; directions enter at its last hook point.
        contexts: token ids; the first `skip` of each, special tokens, and outlying norms are left
        out of the mean."""
        self.model = model
        self._token = torch.tensor(contexts[0][:1])
        name = model.hooks[-1].name
        read = [model.hidden_states(torch.tensor([ids]))[name][0, skip:] for ids in contexts]
        states = torch.cat(read).float()
        norms = states.norm(dim=1)
        self.state = states[norms <= OUTLIER_MULTIPLE * norms.median()].mean(0)

    @torch.no_grad()
    def __call__(self, directions: Tensor) -> Tensor:
        """directions `[n, d]`, in the model's own units -> change of the logit of every token that
        the tokenizer has, per unit of each direction, `[n, tokens]`"""
        name, hook = self.model.name, self.model.hooks[-1]
        if directions.shape[1] != len(self.state):
            raise BitlensError(
                f"The decoder writes states of width {directions.shape[1]}, but the head of {name} "
                f"reads {len(self.state)}; give those of one model."
            )
        network: Any = self.model.model
        tangent = directions.to(self.state)[:, None]
        effect = None
        with forward_ad.dual_level():
            state = forward_ad.make_dual(self.state.expand_as(tangent).contiguous(), tangent)
            tokens = self._token.expand(len(directions), 1).to(self.model.device)
            try:
                with attach(self.model.base, hook, lambda x: state.to(x.dtype)):
                    effect = forward_ad.unpack_dual(network(input_ids=tokens).logits).tangent
            except NotImplementedError:  # an operation without a forward derivative
                pass
            if effect is None:
                raise BitlensError(
                    f"The head of {name} cannot be differentiated; leave out `promotes`."
                )
            return effect[:, 0, : len(self.model.tokenizer)].float()


def direct_effect(codes: Columns, hook: str | None = None) -> DirectEffect:
    """The direct effect in the language model of these codes, of what is written at `hook`
    (default: where the codes' hidden states are from), at the mean state of the first 64 tokens of
    16 of their documents."""
    hook = hook or (codes.manifest.get("hook") or {}).get("module")
    if codes.manifest.get("model") is None or hook is None:
        raise BitlensError(
            f"The codes {codes.path} name no language model and hook point, so there is no output; "
            "leave out `promotes`."
        )
    hooks = [hook, "layers.-1"]
    model = LanguageModel.again(
        codes.manifest, codes.path, hooks, dtype="float32", device="cpu", causal=True
    )
    written, last_block = model.hooks
    layers = model.config.get_text_config().num_hidden_layers
    if written.transformers == f"hidden_states[{layers}]":
        model.hooks = [written]  # after the final norm
    elif written.transformers or (written.transformer_lens or "").endswith(ADDED):
        model.hooks = [last_block]
    else:
        raise BitlensError(
            f"What is written at {written.name} is not added to the residual stream as it is, so "
            "it has no direct path to the logits; leave out `promotes`."
        )
    before = ContextReader(Corpus(()), model.tokenizer, LENGTH).before
    return DirectEffect(model, _beginnings(codes, model, before), skip=len(before))


def _beginnings(codes: Columns, model: LanguageModel, before: list[int]) -> list[list[int]]:
    """The first LENGTH tokens of CONTEXTS documents, spread over all."""
    length = min(LENGTH, model.longest_context() or LENGTH) - len(before)
    changes = (codes.document[1:] != codes.document[:-1]).nonzero()[:, 0] + 1
    documents = codes.token.tensor_split(changes)
    chosen = torch.linspace(0, len(documents) - 1, min(CONTEXTS, len(documents))).long().tolist()
    return [before + documents[i][:length].tolist() for i in chosen]
