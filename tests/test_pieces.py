"""Texts of tokens are cut from one decoded string, for tokenizers of every kind."""

import ast
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import bitlens
from bitlens.hidden.pieces import UNREADABLE, cut, in_text, outside, token_texts

CORPUS = [
    "The cat sat on the mat. It's 3 o'clock, isn't it? He said: don't!",
    "Ein Käfer krabbelt über größere Straßen. Le garçon a mangé l'été.",
    "def f(x):\n    return [x ** 2, 'a']  # a comment\n",
] * 20
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def bytelevel() -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>"], initial_alphabet=alphabet),
    )
    return core


def llama2() -> Tokenizer:
    """Sentencepiece's BPE as in Llama 2: a space before the text, bytes for unknown characters."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    trained.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<unk>", "<s>", *BYTES]
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=special))
    about = json.loads(trained.to_str())
    about["model"]["byte_fallback"] = True
    about["added_tokens"] = [
        token for token in about["added_tokens"] if token["content"] in ("<unk>", "<s>")
    ]
    core = Tokenizer.from_str(json.dumps(about))
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return core


def unigram() -> Tokenizer:
    """As of T5 and XLM-R."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(vocab_size=200, special_tokens=["<unk>", "<s>"], unk_token="<unk>"),
    )
    return core


def wordpiece() -> Tokenizer:
    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(prefix="##")
    core.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=["<unk>", "<s>"])
    )
    return core


def ends_of_words() -> Tokenizer:
    """As of CLIP and the first GPT: a token says that a word ends, not that it begins."""
    core = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.decoder = decoders.BPEDecoder(suffix="</w>")
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=200, special_tokens=["<unk>", "<s>"], end_of_word_suffix="</w>"
        ),
    )
    return core


KINDS = {
    "bytelevel": bytelevel,
    "llama2": llama2,
    "unigram": unigram,
    "wordpiece": wordpiece,
    "wordpiece cleaned up": wordpiece,
    "unigram cleaned up": unigram,
    "ends of words": ends_of_words,
}


@functools.cache
def make(kind: str) -> Any:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=KINDS[kind](),
        bos_token="<s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces="cleaned" in kind,
    )


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


texts = st.text(
    st.sampled_from(" '.,!nats\n") | st.characters(exclude_categories=["Cs"]), max_size=40
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=texts, special=st.integers(0, 40))
@example(text="It 's \"a\" cat , isn 't it ? 你好 café 😀 x", special=3)
def test_pieces_join_to_the_decoded_text(kind: str, text: str, special: int):
    """With a special token in the middle; a window's three parts are pieces of the same text."""
    tokenizer = make(kind)
    ids = ids_of(tokenizer, text)
    ids.insert(min(special, len(ids)), tokenizer.bos_token_id)
    whole = tokenizer.decode(ids)
    assert "".join(cut(tokenizer, ids, range(1, len(ids)))) == whole
    for here in range(len(ids)):
        assert "".join(in_text(tokenizer, ids, here, len(ids))) == whole


@pytest.mark.parametrize("kind", ["bytelevel", "llama2", "unigram"])
@settings(max_examples=60, deadline=None)
@given(text=texts)
@example(text="你好 café 😀😀 x  y KÀ")
def test_every_token_has_the_characters_that_its_offsets_say(kind: str, text: str):
    """Where decoding gives the text back, a token ends after its last whole character."""
    tokenizer = make(kind)
    if kind == "unigram":  # it knows the characters of its corpus only
        text = "".join(c for c in text if c in "".join(CORPUS)) or "a cat"
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    assume(ids and tokenizer.decode(ids) == text and UNREADABLE not in text)
    pieces, reached = cut(tokenizer, ids, range(1, len(ids))), 0
    for i, piece in enumerate(pieces):
        start, end = offsets[i]
        following = offsets[i + 1][0] if i + 1 < len(ids) else len(text)
        assert text[reached : reached + len(piece)] == piece
        assert reached + len(piece) == min(end, following), (
            "the token after it begins inside this one's character"
        )
        reached += len(piece)
        before, token, after = in_text(tokenizer, ids, i, 3)
        part = UNREADABLE in tokenizer.decode([ids[i]])
        assert (token in text[start:end] if part else token == text[start:end]) or (
            kind != "bytelevel"
        ), "a part of a character stands for the character, parts of two for one of them"
        assert before + token + after in text


@pytest.mark.parametrize("kind", KINDS)
def test_contexts_keep_their_spaces(kind: str):
    tokenizer = make(kind)
    ids = ids_of(tokenizer, "the cat sat on the mat")
    words = []
    for here in range(len(ids)):
        before, token, after = in_text(tokenizer, ids, here, 3)
        assert before + token + after in "the cat sat on the mat"
        words.append(token)
    assert "".join(words) == "the cat sat on the mat"


@pytest.mark.parametrize("kind", KINDS)
def test_single_tokens_show_whether_they_begin_a_word(kind: str):
    tokenizer = make(kind)
    ids = ids_of(tokenizer, "a the cat sat")[len(ids_of(tokenizer, "a")) :]
    texts = token_texts(tokenizer, ids)
    assert "".join(texts[i] for i in ids).strip() == "the cat sat"
    if kind != "ends of words":
        assert texts[ids[0]].startswith(" ")


def test_a_window_that_begins_within_a_run_of_bytes_is_text():
    """Llama 2 drops a whole run of byte tokens if it begins within a character."""
    tokenizer = make("llama2")
    text = "你好你好你好你好"
    ids = ids_of(tokenizer, text)
    for here in range(1, len(ids)):
        before, token, after = in_text(tokenizer, ids, here, 4)
        assert token in "你好", (before, token, after)
        assert len(token) == 1
        assert before + token + after in text


def test_spaces_stay_outside_a_mark_unless_they_are_all():
    assert outside("  cat ") == ("  ", "cat ")
    assert outside("cat") == ("", "cat")
    assert outside("  ") == ("", "  ")
    assert outside(" \n") == (" ", "\n")


@pytest.mark.slow
def test_no_other_code_makes_text_of_tokens():
    """But for a judge's own answer, which nobody looks at in context."""
    names = {
        "decode",
        "batch_decode",
        "convert_ids_to_tokens",
        "convert_tokens_to_string",
        "id_to_token",
    }
    root, found = Path(bitlens.__file__).parent, set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Attribute)
                and node.attr in names
                and "tokenizer" in ast.unparse(node.value)
            ):
                found.add(path.relative_to(root).as_posix())
    assert found == {"hidden/pieces.py", "comsem/local_model.py"}
