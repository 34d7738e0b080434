"""A control vector of llama.cpp: what is in the file, and what it does where llama.cpp adds it."""

import pytest
import torch

from bitlens.autoencoders import BinaryAutoencoder, TopKAutoencoder
from bitlens.causal.intervene import change_codes, steering_vector
from bitlens.cli import main
from bitlens.ecosystem.vector import control_vector, layer_of, write_gguf
from bitlens.errors import BitlensError
from bitlens.hidden import LanguageModel
from bitlens.hidden.hooks import attach

gguf = pytest.importorskip("gguf")


@pytest.fixture
def autoencoder():
    found = BinaryAutoencoder(256, 8, coding="step")
    found.scale.fill_(3.5)
    names = {"module": "layers.2", "transformer_lens": "blocks.2.hook_resid_post"}
    found.metadata = {"hook": names, "model": "bundled"}
    return found


def read(path):
    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    return fields, {t.name: torch.tensor(t.data.copy()) for t in reader.tensors}


def test_the_file_holds_the_rows_in_the_models_units(autoencoder, tmp_path):
    path = tmp_path / "vector.gguf"
    assert write_gguf(path, autoencoder, [3, 5], [2.0, -1.0]) == 2
    fields, tensors = read(path)
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "llama"
    assert fields["controlvector.layer_count"] == 1
    rows = autoencoder.W_dec.detach().double() * 3.5
    expected = (2 * rows[3] - rows[5]).float()
    assert list(tensors) == ["direction.2"]
    torch.testing.assert_close(tensors["direction.2"], expected)
    one = control_vector(autoencoder, [3])
    torch.testing.assert_close(one, steering_vector(autoencoder, 3))


def test_what_llama_cpp_adds_is_what_the_latents_add(autoencoder, tmp_path):
    """At the output of layer N, counted from 0, at every token."""
    autoencoder.save(tmp_path / "run")
    path = tmp_path / "vector.gguf"
    main(["export", "vector", str(tmp_path / "run"), "3", "--strength", "4", "--out", str(path)])
    ((name, vector),) = read(path)[1].items()
    model = LanguageModel.load("bundled", ["layers.2"], device="cpu", causal=True)
    tokens = model.tokenizer("Call me Ishmael.", add_special_tokens=False, return_tensors="pt")
    (place,) = LanguageModel.of(model.model, [f"layers.{name.removeprefix('direction.')}"]).hooks
    with torch.no_grad():
        with attach(model.base, place, lambda x: x + vector):
            found = model.model(**tokens).logits

        def raised(rows):
            codes = rows.codes.clone()
            codes[:, 3] += 4
            return codes

        with change_codes(model, autoencoder, raised):
            expected = model.model(**tokens).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("hook", "layer"),
    [
        ({"module": "layers.4", "transformer_lens": "blocks.4.hook_resid_post"}, 4),
        ({"module": "layers.4:input", "transformer_lens": "blocks.4.hook_resid_pre"}, 3),
        ({"module": "layers.4.mlp", "transformer_lens": "blocks.4.hook_mlp_out"}, 4),
        ({"module": "layers.4:input", "transformers": "hidden_states[4]"}, 3),
        ({"module": "h.7"}, 7),
    ],
)
def test_layers_are_counted_as_llama_cpp_counts_them(autoencoder, hook, layer):
    autoencoder.metadata = {"hook": hook}
    assert layer_of(autoencoder) == layer


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ({"module": "layers.0", "transformer_lens": "blocks.0.hook_resid_post"}, "layers 1 and"),
        ({"module": "layers.4.self_attn", "transformer_lens": "blocks.4.hook_attn_out"}, "writes"),
        ({"module": "norm", "transformers": "hidden_states[6]"}, "writes to norm"),
    ],
)
def test_places_that_llama_cpp_cannot_add_to_are_refused(autoencoder, hook, said):
    autoencoder.metadata = {"hook": hook}
    with pytest.raises(BitlensError, match=said):
        layer_of(autoencoder)


def test_bad_arguments_are_said_in_one_sentence(autoencoder, tmp_path):
    path = tmp_path / "vector.gguf"
    with pytest.raises(BitlensError, match="2 strengths do not fit 3 latents"):
        write_gguf(path, autoencoder, [1, 2, 3], [1.0, 2.0])
    with pytest.raises(BitlensError, match="Name a latent"):
        write_gguf(path, autoencoder, [])
    with pytest.raises(BitlensError, match="8"):
        write_gguf(path, autoencoder, [8])
    stranger = TopKAutoencoder(256, 4, k=1)
    stranger.metadata = {"hook": {"module": "layers.2"}}
    with pytest.raises(BitlensError, match="with `hint`"):
        write_gguf(path, stranger, [1])
    assert not path.exists()
    write_gguf(path, stranger, [1], hint="qwen3")
    assert read(path)[0]["controlvector.model_hint"] == "qwen3"
    with pytest.raises(BitlensError, match="pass `overwrite=True` to replace it"):
        write_gguf(path, stranger, [2], hint="llama")  # it might be a language model
    assert read(path)[0]["controlvector.model_hint"] == "qwen3"
    write_gguf(path, stranger, [2], hint="llama", overwrite=True)
    assert read(path)[0]["controlvector.model_hint"] == "llama"
    path.write_bytes(b"GGUF of a model")
    with pytest.raises(BitlensError, match="no control vector, and stays"):
        write_gguf(path, stranger, [1], hint="llama", overwrite=True)
    assert path.read_bytes() == b"GGUF of a model"
