"""A run to explore, and a server of it in a thread."""

import contextlib
import threading
from pathlib import Path

import httpx2

from bitlens.autoencoders import Autoencoder
from bitlens.encode import encode_store
from bitlens.explorer import serving
from bitlens.explorer.explorer import Explorer
from bitlens.hidden import Corpus, LanguageModel
from bitlens.hidden.harvest import harvest
from bitlens.hidden.text import ContextReader
from bitlens.training import TrainConfig, train

HOOK, LATENTS = "layers.2", 96
TEXT = "The old sailor watched a quiet river in the morning"


class Made:
    """A folder with a store of the bundled model, a run of bits and one of TopK, and their
    codes."""

    def __init__(self, folder: Path, text: Path) -> None:
        model = LanguageModel.load("bundled", [HOOK], device="cpu")
        reader = ContextReader(Corpus((str(text),)), model.tokenizer, 64, packed=False)
        (store,) = harvest(model, reader, folder / "store")
        self.store, self.bae, self.topk = folder / "store", folder / "bae", folder / "topk"
        common = {"n_latents": LATENTS, "steps": 60, "batch_size": 128, "device": "cpu"}
        train(store, TrainConfig(**common), self.bae)
        train(store, TrainConfig(architecture="topk", k=6, **common), self.topk)
        self.codes = folder / "codes-bae"
        encode_store(Autoencoder.from_pretrained(self.bae), store, self.codes)


@contextlib.contextmanager
def served(explorer: Explorer):
    """A server in a thread, on a port of its own."""
    listening = serving.listen(0)
    port = listening.getsockname()[1]
    server = serving.server(explorer, port)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            client.get("/api/run.json")
            yield client
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
        assert not thread.is_alive()


def ask(site, question: str, **asked):
    return site.post(f"/api/{question}", json=asked)
