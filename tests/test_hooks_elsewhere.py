"""Names that other libraries have for a place."""

import pytest

from bitlens.hidden.hooks import differ, names_elsewhere


@pytest.mark.parametrize(
    ("name", "module", "transformer_lens"),
    [
        ("blocks.3.hook_resid_post", "layers.3", "blocks.3.hook_resid_post"),
        ("blocks.3.hook_resid_pre", "layers.2", "blocks.2.hook_resid_post"),
        ("blocks.0.hook_resid_pre", "layers.0:input", "blocks.0.hook_resid_pre"),
        ("blocks.3.attn.hook_z", "layers.3.self_attn.o_proj:input", "blocks.3.attn.hook_z"),
        ("blocks.3.hook_mlp_out", "blocks.3.hook_mlp_out", "blocks.3.hook_mlp_out"),
        ("model.layers.3.output", "layers.3", None),
        ("model.layers.3.self_attn.o_proj.input", "layers.3.self_attn.o_proj:input", None),
        ("layers.3.mlp.input", "layers.3.mlp:input", None),
        ("gpt_neox.layers.3", "gpt_neox.layers.3", None),
    ],
    ids=str,
)
def test_a_place_by_the_name_another_library_gave_it(name, module, transformer_lens):
    names = names_elsewhere(name)
    assert names == {"module": module, "transformers": None, "transformer_lens": transformer_lens}


def test_no_name_is_no_place():
    assert names_elsewhere(None) is None
    assert names_elsewhere("") is None


def test_places_differ_by_the_first_naming_that_both_have():
    gpt2 = {"module": "h.3", "transformer_lens": "blocks.3.hook_resid_post"}
    assert not differ(gpt2, names_elsewhere("blocks.3.hook_resid_post"))
    assert differ(gpt2, names_elsewhere("blocks.2.hook_resid_post"))
    assert differ({"module": "layers.3"}, {"module": "layers.4"})
    assert not differ({"module": "layers.3"}, None)
    assert not differ(None, None)
