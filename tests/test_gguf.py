"""A .gguf file is the same model as a folder of the same weights, and what transformers would read
otherwise is refused."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bitlens.autoencoders import BinaryAutoencoder
from bitlens.causal.splice import load_spliced
from bitlens.errors import BitlensError
from bitlens.files import sha256
from bitlens.hidden import ActivationStore, Corpus, LanguageModel
from bitlens.hidden import gguf as reading
from bitlens.hidden.harvest import harvest
from bitlens.hidden.named import recorded_model
from bitlens.hidden.text import ContextReader
from bitlens.labels.sources import load_tokenizer
from conftest import WIDTH

gguf = pytest.importorskip("gguf")

TYPES = gguf.GGMLQuantizationType
TEXT = "The old sailor watched a green river, before the storm."


def as_stored(weight, kind):
    """A matrix as llama.cpp's converter would store it: (bytes, what they stand for)."""
    data = gguf.quantize(weight.numpy(), kind)
    return data, torch.from_numpy(np.array(gguf.dequantize(data, kind)))


def pairs_of_rotation(weight, heads):
    """Rows of queries or keys in GGUF's order: the two of each rotation side by side."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def add_tokenizer(writer, folder):
    saved = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = {
        **saved["model"]["vocab"],
        **{t["content"]: t["id"] for t in saved["added_tokens"]},
    }
    special = {token["id"] for token in saved["added_tokens"] if token["special"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
    writer.add_token_types([3 if i in special else 1 for i in range(len(vocabulary))])
    writer.add_token_merges([" ".join(pair) for pair in saved["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(False)


def write(file, folder, kind=TYPES.F32, *, tokenizer=True, lacking="none", more=None, **said):
    """The tiny Llama of a folder as a .gguf file -> its weights, as they are in the file."""
    config = json.loads((folder / "config.json").read_text())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(file, said.pop("architecture", "llama"))
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    for name, value in said.items():
        getattr(writer, f"add_{name}")(value)
    if tokenizer:
        add_tokenizer(writer, folder)
    weights = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        stored_as = kind if weight.dim() == 2 else TYPES.F32
        weights[name] = as_stored(weight, stored_as)[1]
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            weight = pairs_of_rotation(weight, config[heads]) if part in name else weight
        if lacking not in name:
            own = names.get_name(name.removesuffix(".weight")) + ".weight"
            writer.add_tensor(own, as_stored(weight, stored_as)[0], raw_dtype=stored_as)
    for name, values in (more or {}).items():
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.fixture
def file(tiny_llama, tmp_path):
    write(tmp_path / "model.gguf", tiny_llama)
    return tmp_path / "model.gguf"


def load(name, *hooks, **settings):
    return LanguageModel.load(str(name), list(hooks), device="cpu", **settings)


def read(model):
    tokens = torch.tensor([model.tokenizer(TEXT)["input_ids"]])
    return model.hidden_states(tokens)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [TYPES.F32, TYPES.F16, TYPES.Q8_0, TYPES.Q4_1])
def test_hidden_states_and_logits_are_those_of_the_folder(kind, tiny_llama, tmp_path, capfd):
    folder = shutil.copytree(tiny_llama, tmp_path / "folder")
    weights = write(tmp_path / "model.gguf", tiny_llama, kind)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    hooks = ("layers.1", "blocks.2.hook_attn_out", "hidden_states[4]")
    capfd.readouterr()
    for some in (hooks[:1], hooks):
        one, other = (load(name, *some) for name in (tmp_path / "model.gguf", folder))
        found, expected = read(one), read(other)
        assert one.hooks == other.hooks
        assert one.dtype == torch.float32
        assert len(one.base.layers) == len(other.base.layers) == (2 if len(some) == 1 else 4)
        assert all(torch.equal(found[name], expected[name]) for name in found)
    one, other = (load(n, "layers.1", causal=True) for n in (tmp_path / "model.gguf", folder))
    ids = torch.tensor([one.tokenizer(TEXT)["input_ids"]])
    with torch.inference_mode():
        assert torch.equal(one.model(input_ids=ids).logits, other.model(input_ids=ids).logits)
    assert capfd.readouterr().err == ""  # transformers' own bars are not shown


def test_the_tokenizer_is_that_of_the_folder(file, tiny_llama):
    one, other = load(file, "layers.0"), load(tiny_llama, "layers.0")
    for text in (TEXT, "", "  two\n\nlines <|eos|> ünïcode 🙂"):
        assert one.tokenizer(text)["input_ids"] == other.tokenizer(text)["input_ids"]
    assert one.tokenizer.all_special_ids == other.tokenizer.all_special_ids
    assert (one.tokenizer.bos_token_id, one.tokenizer.eos_token_id) == (0, 1)
    assert one.longest_context() == other.longest_context() == 128
    assert one.memory() == other.memory()


def test_another_dtype_is_that_of_the_folder(file, tiny_llama):
    one, other = (load(name, "layers.1", dtype="bfloat16") for name in (file, tiny_llama))
    assert one.dtype == torch.bfloat16
    assert torch.equal(read(one)["layers.1"], read(other)["layers.1"])


@pytest.mark.slow
def test_only_the_file_itself_is_read(file, tiny_llama, make_model, tmp_path, monkeypatch):
    expected = read(load(file, "layers.1"))["layers.1"]
    for neighbour in make_model("bert").glob("*.json"):  # another model's, in the same folder
        shutil.copy(neighbour, tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "none"}')
    (tmp_path / "here").mkdir()
    write(tmp_path / "here" / "model.gguf", tiny_llama, TYPES.Q4_1)  # of the same name
    monkeypatch.chdir(tmp_path / "here")
    found = read(load("../model.gguf", "layers.1"))["layers.1"]
    assert torch.equal(found, expected)
    assert gguf.GGUFReader(file).fields  # is gguf's own again


@pytest.mark.slow
def test_threads_read_files_of_their_own(file, tiny_llama, tmp_path):
    write(tmp_path / "other.gguf", tiny_llama, TYPES.Q4_1)
    files = [file, tmp_path / "other.gguf"]
    expected = [read(load(each, "layers.1"))["layers.1"] for each in files]
    own = gguf.GGUFReader
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda each: read(load(each, "layers.1"))["layers.1"], files * 4))
    assert all(torch.equal(x, expected[i % 2]) for i, x in enumerate(found))
    assert gguf.GGUFReader is own


def test_a_folder_that_is_a_link_and_one_above_it(file, tmp_path):
    (tmp_path / "a folder").mkdir()
    (tmp_path / "a folder" / "model.gguf").write_bytes(file.read_bytes())
    (tmp_path / "a folder" / "below").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a folder" / "below")
    file.unlink()
    model = load(tmp_path / "link" / ".." / "model.gguf", "layers.1")
    assert model.name == str(tmp_path / "a folder" / "model.gguf")


# --- what is kept of it ---------------------------------------------------------------------------


@pytest.fixture
def store(file, text_folder, tmp_path, monkeypatch):
    """Harvested from a file that was named relative to the current folder."""
    monkeypatch.chdir(tmp_path)
    model = load("model.gguf", "layers.1")
    reader = ContextReader(Corpus((str(text_folder),)), model.tokenizer, 32)
    return harvest(model, reader, tmp_path / "store")[0]


def again(store):
    return load_spliced(BinaryAutoencoder(WIDTH, 8), store, "cpu")


@pytest.mark.slow
def test_a_file_is_found_from_elsewhere(store, file, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert store.manifest["model"] == str(file)
    assert store.manifest["model_digest"] == sha256(file)
    assert store.manifest["revision"] is None
    assert again(store).record == {
        k: store.manifest[k] for k in ("model", "revision", "model_digest")
    }
    assert load_tokenizer(store)(TEXT) == load(file).tokenizer(TEXT)


def test_a_link_keeps_its_name(file, tmp_path):
    (tmp_path / "blob").write_bytes(file.read_bytes())  # as the Hub's client keeps files
    (tmp_path / "link.gguf").symlink_to(tmp_path / "blob")
    assert load(tmp_path / "link.gguf", "layers.1").name == str(tmp_path / "link.gguf")


@pytest.mark.slow
@pytest.mark.parametrize("use", [again, load_tokenizer], ids=["splice", "tokenizer"])
def test_another_file_is_refused_and_the_way_out_works(store, use, file, tiny_llama, tmp_path):
    write(tmp_path / "other.gguf", tiny_llama, TYPES.Q8_0)
    file.rename(tmp_path / "moved.gguf")
    gone = r"The file .*model.gguf of the language model behind .* is gone; put it back, or write"
    with pytest.raises(BitlensError, match=gone):
        use(store)
    (tmp_path / "other.gguf").rename(file)
    with pytest.raises(BitlensError, match=r"is another one than when .* was made"):
        use(store)
    manifest = store.path / "manifest.json"
    manifest.write_text(
        json.dumps(json.loads(manifest.read_text()) | {"model": str(tmp_path / "moved.gguf")})
    )
    use(ActivationStore(store.path))
    assert recorded_model(json.loads(manifest.read_text()), store.path)[1] is None


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"architecture": "bert"}, "transformers reads no .gguf of this architecture"),
        ({"tokenizer": False}, "has no tokenizer"),
        ({"type": "adapter"}, r"is an adapter \(LoRA\); merge it"),
        ({"type": "mmproj", "architecture": "clip"}, "is a projector of images; name the file"),
        ({"architecture": "clip"}, "is a projector of images"),
        ({"type": "vocab"}, "is no language model but what GGUF calls vocab"),
        ({"rope_scaling_type": gguf.RopeScalingType.YARN}, "scales its positions .*type yarn"),
        ({"lacking": "embed_tokens"}, "are incomplete: they lack embed_tokens.weight"),
        ({"lacking": "layers.0.mlp.up"}, "are incomplete: they lack layers.0.mlp.up_proj"),
    ],
)
def test_what_is_no_whole_language_model_is_refused(tiny_llama, tmp_path, said, reason):
    write(tmp_path / "model.gguf", tiny_llama, **said)
    with pytest.raises(BitlensError, match=reason) as refusal:
        load(tmp_path / "model.gguf", "layers.1")
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).count(". ") == 0


@pytest.mark.slow
def test_weights_above_the_last_hook_point_may_lack(tiny_llama, tmp_path):
    write(tmp_path / "model.gguf", tiny_llama, lacking="layers.3.mlp.up")
    found = read(load(tmp_path / "model.gguf", "layers.1"))["layers.1"]
    assert torch.equal(found, read(load(tiny_llama, "layers.1"))["layers.1"])
    with pytest.raises(BitlensError, match="are incomplete: they lack"):
        load(tmp_path / "model.gguf", "layers.1", causal=True)


def test_positions_of_llama_3_are_scaled(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    scaling = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16}
    scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 10_000.0}
    (folder / "config.json").write_text(json.dumps(config | {"rope_parameters": scaling}))
    wavelength = 2 * np.pi * 10_000.0 ** (np.arange(0, 8, 2) / 8)
    between = (16 / wavelength - 1) / (4 - 1)  # 1: as it was; 0: a factor of 8
    factors = 1 / ((1 - between.clip(0, 1)) / 8 + between.clip(0, 1))
    write(tmp_path / "model.gguf", tiny_llama, more={"rope_freqs.weight": factors})
    one, other, plain = (load(n, "layers.3") for n in (tmp_path / "model.gguf", folder, tiny_llama))
    found, expected = read(one)["layers.3"], read(other)["layers.3"]
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, read(plain)["layers.3"], rtol=1e-2, atol=1e-2)


def test_positions_scaled_otherwise_are_refused(tiny_llama, tmp_path):
    write(tmp_path / "model.gguf", tiny_llama, more={"rope_factors_long.weight": np.ones(4)})
    with pytest.raises(BitlensError, match=r"\(rope_factors_long.weight\), which transformers"):
        load(tmp_path / "model.gguf", "layers.1")


@pytest.mark.slow
def test_layers_above_are_not_dequantised(file, monkeypatch):
    seen, dequantize = [], gguf.dequantize
    monkeypatch.setattr(gguf, "dequantize", lambda *a: seen.append(a) or dequantize(*a))
    for hook, layers in (("layers.0", 2), ("norm", 4)):  # one more than is kept, for its names
        seen.clear()
        load(file, hook)
        assert len(seen) == 3 + 9 * layers


@pytest.mark.parametrize("kept", [0, 3, 20, 2_000, 0.5, -1])
def test_a_file_that_was_cut_is_refused(file, kept):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(BitlensError, match=r"is damaged, cut short or no GGUF file .*again\.$"):
        load(file, "layers.1")


def test_a_damaged_file_is_refused(file):
    file.write_bytes(b"GGML" + file.read_bytes()[4:])
    with pytest.raises(BitlensError, match=r"or no GGUF file \(GGUF magic invalid\)"):
        load(file, "layers.1")


def test_a_part_of_a_model_is_refused(file, tiny_llama, tmp_path):
    part = file.rename(tmp_path / "model-00001-of-00003.gguf")
    with pytest.raises(BitlensError, match="is a part of a model; join all parts"):
        load(part, "layers.1")


def test_a_missing_library_or_file_is_named(file, monkeypatch):
    with pytest.raises(BitlensError, match=r"There is no file none\.gguf\.$"):
        load("none.gguf", "layers.1")
    find = reading.importlib.util.find_spec
    for package in ("gguf", "accelerate"):
        with monkeypatch.context() as patched:
            patched.setattr(
                reading.importlib.util,
                "find_spec",
                lambda n, p=package: None if n == p else find(n),
            )
            with pytest.raises(BitlensError, match=r"needs bitlens' extra \[gguf\]: pip install"):
                load(file, "layers.1")
    monkeypatch.setattr("transformers.__version__", "5.17.0")
    with pytest.raises(BitlensError, match=r"transformers 5\.17\.0 reads .* wrongly: pip install"):
        load(file, "layers.1")


def test_an_adapters_folder_says_how_to_merge_it(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(BitlensError, match=r"holds an adapter .*merge_and_unload.* .*save_pret"):
        load(tmp_path, "layers.1")
