"""Shared fixtures: tiny random models saved to folders, text, a harvested store, and the command in
a process of its own.

Everything is built once a session from fixed seeds, offline, and must not be changed by a test:
copy what you damage.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = (
    "1"  # before anything imports huggingface_hub: no test reaches for the network
)
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import itertools
import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from bitlens.encode import encode_store
from bitlens.hidden import ActivationStore, Corpus, LanguageModel
from bitlens.hidden.harvest import harvest
from bitlens.hidden.text import ContextReader
from bitlens.training import TrainConfig, train
from command import Command

# What a shell starts in the background is deaf to Ctrl-C, as would be the commands tried here.
signal.signal(signal.SIGINT, signal.default_int_handler)

LAYERS, WIDTH, HEADS = 4, 32, 4
BOS, EOS, PAD, UNK, CLS, SEP = "<|bos|>", "<|eos|>", "<|pad|>", "<|unk|>", "<|cls|>", "<|sep|>"


def english(seed: int, sentences: int) -> str:
    """Sentences that look like English, the same for the same seed."""
    draw = random.Random(seed)
    nouns = [
        "sailor",
        "river",
        "lamp",
        "garden",
        "letter",
        "horse",
        "winter",
        "doctor",
        "window",
        "mountain",
        "song",
        "child",
    ]
    verbs = ["watched", "followed", "forgot", "carried", "painted", "heard", "found", "praised"]
    adjectives = ["old", "quiet", "green", "broken", "distant", "clever", "heavy", "golden"]
    endings = [
        "in the morning",
        "before the storm",
        "without a word",
        "near the harbour",
        "for many years",
    ]

    def sentence() -> str:
        first, second = draw.sample(nouns, 2)
        one, other = draw.sample(adjectives, 2)
        return f"The {one} {first} {draw.choice(verbs)} a {other} {second} {draw.choice(endings)}."

    return " ".join(sentence() for _ in range(sentences))


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 text files of 4 to 12 sentences; a file is a document."""
    folder = tmp_path_factory.mktemp("text")
    for index in range(20):
        (folder / f"{index:02d}.txt").write_text(
            english(index, 4 + index * 5 % 9), encoding="utf-8"
        )
    return folder


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """`make_tokenizer()`: byte-level BPE with <|bos|>, <|eos|>, <|pad|>, adding no special tokens
    by itself.
    With `around="bos"` it begins every text with <|bos|>, with `around="bert"` it puts <|cls|> and
    <|sep|> around it."""
    core = Tokenizer(models.BPE(unk_token=None))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[BOS, EOS, PAD, UNK, CLS, SEP],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    core.train_from_iterator([english(seed, 20) for seed in range(20)], trainer)
    trained = core.to_str()

    def make(around: str = "nothing") -> Any:
        own = Tokenizer.from_str(trained)
        names = {"pad_token": PAD, "unk_token": UNK}
        if around == "bert":
            names |= {"cls_token": CLS, "sep_token": SEP}
            special = [(CLS, own.token_to_id(CLS)), (SEP, own.token_to_id(SEP))]
            own.post_processor = processors.TemplateProcessing(
                single=f"{CLS} $A {SEP}", special_tokens=special
            )
        else:
            names |= {"bos_token": BOS, "eos_token": EOS}
        if around == "bos":
            special = [(BOS, own.token_to_id(BOS))]
            own.post_processor = processors.TemplateProcessing(
                single=f"{BOS} $A", special_tokens=special
            )
        return transformers.PreTrainedTokenizerFast(tokenizer_object=own, **names)

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    """The tokenizer of `tiny_llama`."""
    return make_tokenizer()


def random_model(kind: str, vocabulary: int) -> transformers.PreTrainedModel:
    """A random model of 4 layers of width 32 (t5: 2): the kinds below."""
    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "pad_token_id": 2,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    usual = common | {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 2 * WIDTH,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    }
    torch.manual_seed(0)
    if kind == "llama":
        config = transformers.LlamaConfig(**usual, num_key_value_heads=2)
        return transformers.LlamaForCausalLM(config)
    if kind == "gpt2":
        sizes = {
            "n_embd": WIDTH,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "n_positions": 128,
            "initializer_range": 0.2,
        }
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**common, **sizes))
    if kind == "gemma3":  # every other layer sees 16 tokens
        layers = ["sliding_attention", "full_attention"] * (LAYERS // 2)
        window = {"sliding_window": 16, "layer_types": layers}
        config = transformers.Gemma3TextConfig(**usual, num_key_value_heads=2, head_dim=8, **window)
        return transformers.Gemma3ForCausalLM(config)
    if kind == "mamba":  # no attention
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "state_size": 4}
        sizes |= {"initializer_range": 1.0}
        return transformers.MambaForCausalLM(transformers.MambaConfig(**common, **sizes))
    if kind == "gpt_neox":
        return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**usual))
    if kind == "qwen3":
        config = transformers.Qwen3Config(**usual, num_key_value_heads=2, head_dim=8)
        return transformers.Qwen3ForCausalLM(config)
    if kind == "bert":
        return transformers.BertForMaskedLM(transformers.BertConfig(**usual))
    if kind == "t5":
        sizes = {
            "d_model": WIDTH,
            "d_kv": 8,
            "d_ff": 2 * WIDTH,
            "num_layers": 2,
            "num_heads": HEADS,
        }
        return transformers.T5ForConditionalGeneration(transformers.T5Config(**common, **sizes))
    raise ValueError(kind)


@pytest.fixture(scope="session")
def make_model(
    tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., Any]
) -> Callable[[str], Path]:
    """`make_model(kind)` -> folder of a saved random model (see `random_model`) with its
    tokenizer."""
    saved: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in saved:
            folder = tmp_path_factory.mktemp(kind)
            tokenizer = make_tokenizer("bert" if kind == "bert" else "nothing")
            random_model(kind, len(tokenizer)).eval().save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            saved[kind] = folder
        return saved[kind]

    return make


@pytest.fixture(scope="session")
def tiny_llama(make_model: Callable[[str], Path]) -> Path:
    """Folder of a random 4-layer LlamaForCausalLM of width 32 with its tokenizer."""
    return make_model("llama")


@pytest.fixture(scope="session")
def harvested(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, text_folder: Path
) -> Path:
    """Folder of the store behind `tiny_store`."""
    folder = tmp_path_factory.mktemp("stores") / "llama-layers.1"
    model = LanguageModel.load(str(tiny_llama), ["layers.1"], device="cpu")
    harvest(
        model, ContextReader(Corpus((str(text_folder),)), model.tokenizer, 32), folder, batch_size=4
    )
    return folder


@pytest.fixture
def tiny_store(harvested: Path) -> ActivationStore:
    """The hidden states of `tiny_llama` at layers.1 on `text_folder`: contexts of 32 tokens, one
    shard."""
    return ActivationStore(harvested)


@pytest.fixture(scope="session")
def codes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Codes of the bundled model on the first 400 characters of 160 bundled documents; beside them
    `run`, a quickly trained autoencoder, `store`, and `texts.jsonl` with the label `said`: whether
    the word is in the text."""
    folder = tmp_path_factory.mktemp("bundled-codes")
    documents = itertools.islice(Corpus(("bundled",)).documents(), 160)
    texts = [text[:400] for _, text in documents]
    lines = [{"text": t, "labels": {"said": "yes" if " said" in t else "no"}} for t in texts]
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    model = LanguageModel.load("bundled", ["layers.2"], device="cpu")
    reader = ContextReader(Corpus((str(path),)), model.tokenizer, 64)
    harvest(model, reader, folder / "store", progress=False)
    store = ActivationStore(folder / "store")
    config = TrainConfig(n_latents=192, steps=150, batch_size=256, device="cpu")
    autoencoder = train(store, config, folder / "run")
    encode_store(autoencoder, store, folder / "codes", name=str(folder / "run"))
    return folder / "codes"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Any:
    """Runs of the bundled model to explore: see `explored.Made`."""
    from explored import Made

    return Made(tmp_path_factory.mktemp("explored"), text_folder)


@pytest.fixture(scope="session")
def explorer(made: Any) -> Any:
    """The explorer of the run of bits, beside that of TopK."""
    from bitlens.explorer.explorer import Explorer, Sources

    return Explorer(Sources(made.bae, made.codes, beside=made.topk))


@pytest.fixture(scope="session")
def site(explorer: Any) -> Any:
    """A client of a server of it."""
    from explored import served

    with served(explorer) as client:
        yield client


@pytest.fixture
def bitlens_command(tmp_path: Path) -> Any:
    """`bitlens_command("harvest", ...)` runs the command line in a process of its own; see
    `command.Command`."""
    commands: list[Command] = []

    def start(*arguments: object, **settings: Any) -> Command:
        commands.append(
            Command(
                [str(a) for a in arguments], tmp_path / f"command-{len(commands)}.log", **settings
            )
        )
        return commands[-1]

    yield start
    for command in commands:
        command.kill()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--faults`: as `make faults`."""
    parser.addoption("--faults", type=int, default=1, help="try so many faults of each kind")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`seed` of a test of faults is one number, or as many as --faults says."""
    faults = ("test_faults", "test_processes_training")
    if "seed" in metafunc.fixturenames and metafunc.module.__name__.rpartition(".")[2] in faults:
        metafunc.parametrize("seed", range(int(metafunc.config.getoption("--faults") or 1)))
