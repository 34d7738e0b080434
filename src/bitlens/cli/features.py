"""The command that shows what latents are on for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitlens.cli.common import CodesFolder, Json, write_result
from bitlens.errors import BitlensError

if TYPE_CHECKING:
    from torch import Tensor

    from bitlens.features.profiles import Preference, Profile

FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
TOKENS = 4  # shown of each latent in the table


def features(
    codes: CodesFolder,
    run: Path | None = None,
    promotes: bool = False,
    top: int = 20,
    latents: tuple[int, ...] = (),
    examples: int = 5,
    out: Path | None = None,
    json: Json = None,
) -> None:
    """Profile every latent: how often, where and on which tokens it is on, with examples in context.

    Shows a table of the latents that carry most bits, or a page on each of those named. "On" is a latent's rare state.

    Args:
        codes: folder of codes, from `bitlens encode`.
        run: the autoencoder that made them: also name the latents with like decoder rows.
        promotes: also load the language model: the tokens whose logits each decoder row raises (with --run).
        top: latents in the table.
        latents: show these, each on a page of its own.
        examples: examples of each latent, from as many documents.
        out: also write all profiles to this file, .jsonl or .parquet.
        json: also write the profiles that are shown to this file.
    """
    from dataclasses import asdict

    from bitlens import show
    from bitlens.bits.codes import Codes
    from bitlens.features.labelled import load_tokenizer
    from bitlens.features.profiles import profiles, require_ending, write_profiles

    corpus = Codes(codes)
    if out is not None:
        require_ending(out)
    if examples < 1:
        raise BitlensError(f"--examples must be at least 1, not {examples}.")
    if wrong := [latent for latent in latents if not 0 <= latent < corpus.n_latents]:
        raise BitlensError(f"There is no latent {wrong[0]}; these codes have latents 0 to {corpus.n_latents - 1}.")
    if promotes and run is None:
        raise BitlensError("--promotes needs the decoder; name the autoencoder with --run.")
    unembedding, gain = _output(corpus) if promotes else (None, None)
    found = profiles(
        corpus, tokenizer=load_tokenizer(corpus), W_dec=_decoder(run, corpus), unembedding=unembedding, gain=gain,
        examples=examples,
    )  # fmt: skip
    shown = [found[i] for i in latents] or sorted(found, key=lambda p: -p.bits)[:top]
    if latents:
        for profile in shown:
            _page(profile)
    else:
        show.rows(f"{codes}: {len(corpus):,} rows", [_line(profile) for profile in shown])
    if out is not None:
        write_profiles(out, found)
    write_result(json, {"codes": str(codes), "rows": len(corpus), "profiles": [asdict(profile) for profile in shown]})


def _decoder(run: Path | None, codes: Any) -> Tensor | None:
    """W_dec of the autoencoder, which must be as wide as the codes."""
    if run is None:
        return None
    from bitlens.autoencoders import Autoencoder

    model = Autoencoder.from_pretrained(run)
    if model.n_latents != codes.n_latents:
        raise BitlensError(
            f"{run} has {model.n_latents} latents, but the codes {codes.path} have {codes.n_latents}; name their own run."
        )
    return model.W_dec.detach()


def _output(codes: Any) -> tuple[Tensor, Tensor | None]:
    """The language model's unembedding, and the weights of its final norm if it has one."""
    from bitlens.hidden import LanguageModel

    name = codes.manifest.get("model")
    if name is None:
        raise BitlensError(
            f"The codes {codes.path} name no language model, so there is no output; leave out --promotes."
        )
    hook, revision = codes.manifest["hook"]["module"], codes.manifest.get("revision")
    model = LanguageModel.load(name, [hook], dtype="float32", device="cpu", revision=revision, causal=True)
    norm = next((getattr(model.base, n) for n in FINAL_NORMS if hasattr(model.base, n)), None)
    network: Any = model.model
    return network.get_output_embeddings().weight, None if norm is None else norm.weight


def _line(profile: Profile) -> dict[str, Any]:
    return {
        "latent": profile.latent, "on %": 100 * profile.rate, "bits": profile.bits, "burstiness": profile.burstiness,
        "again": profile.again, "tokens": _tokens(profile.tokens), "example": profile.examples[0] if profile.examples else "",
    }  # fmt: skip


def _tokens(preferred: list[Preference]) -> str:
    from bitlens import show

    return " ".join(show.plain(p.text).strip() or "space" for p in preferred[:TOKENS])


def _page(profile: Profile) -> None:
    """All that is known of one latent."""
    from bitlens import show

    def say(name: str, text: str) -> None:
        show.out.print(f"  {name:<12}{text}")

    def preferred(tokens: list[Preference]) -> str:
        return "  ".join(f"{_quoted(t.text)} {t.share:.0%} (x{t.lift:.3g})" for t in tokens) or "none"

    show.marked(f"[bold]Latent {profile.latent}[/bold]{', on is 0 in the codes' if profile.flipped else ''}")
    say(
        "on",
        f"{profile.rate:.3%} of rows, {profile.surprisal:.2f} bits each time; entropy {profile.bits:.4f} bits a row",
    )
    say(
        "clustering",
        f"burstiness {profile.burstiness:.4f}, dispersion {profile.dispersion:.3g}, again {profile.again:.3g}",
    )
    say("positions", "  ".join(f"{name}: x{lift:.2f}" for name, lift in profile.positions.items()))
    say("tokens", preferred(profile.tokens))
    say("next tokens", preferred(profile.next_tokens))
    say("tree", " ".join(map(str, profile.tree)) or "none")
    if profile.similar:
        say("decoder", "  ".join(f"{near.latent} ({near.value:.2f})" for near in profile.similar))
    if profile.promotes:
        say("promotes", "  ".join(f"{_quoted(p.text)} {p.logit:+.2f}" for p in profile.promotes))
    for example in profile.examples:
        say("", example)


def _quoted(text: str) -> str:
    from bitlens import show

    return f"'{show.plain(text)}'"
