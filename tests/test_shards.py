"""Bits that lie in several parts: every answer is that of the same bits in one piece."""

import pytest
import torch
from numpy.testing import assert_array_equal

from bitlens.bits import Codes, PackedBits, packed
from bitlens.bits.shards import BitShards
from bitlens.bits.statistics import co_occurrence, firing_rates
from bitlens.errors import BitlensError
from bitlens.features.on_rows import canonical, on_rows
from bitlens.features.token_scores import rows_on
from bitlens.information.entropy import entropy, lower_bits, plug_in_bits
from bitlens.information.tree import Blocks, TreeCounts, chow_liu
from bitlens.labels.counts import counts_by_group


@pytest.fixture(autouse=True)
def blocks_of_64_rows(monkeypatch):
    monkeypatch.setattr(packed, "BLOCK_BYTES", 1)


def pieces(rows=700, n_latents=150, seed=0):
    """(the bits, the same in parts of which one is empty)"""
    random = torch.Generator().manual_seed(seed)
    rates = torch.rand(n_latents, generator=random) * 0.7
    draws = torch.rand(rows, n_latents, generator=random)
    bits = PackedBits.pack((draws + 0.2 * draws[:, :1]) / 1.2 < rates)
    parts = [PackedBits(words, n_latents) for words in bits.words.split((100, 0, 333, rows - 433))]
    return bits, BitShards(parts)


def test_rows_are_those_of_one_piece():
    whole, parts = pieces()
    random = torch.Generator().manual_seed(1)
    mask = torch.rand(len(whole), generator=random) < 0.6
    mask[:100] = True  # all rows of a part
    latents = torch.rand(whole.n_latents, generator=random) < 0.3
    for one, other in (
        (whole, parts),
        (whole[mask], parts.where(mask)),
        (whole[mask].turned(latents), parts.where(mask).turned(latents)),
        (
            whole.turned(latents)[mask],
            parts.turned(~latents).where(mask).turned(~latents ^ latents),
        ),
        (whole[mask][mask[: int(mask.sum())]], parts.where(mask).where(mask[: int(mask.sum())])),
    ):
        assert len(other) == len(one)
        index = torch.randint(len(one), (50,), generator=random)
        some = torch.rand(len(one), generator=random) < 0.5
        for rows in (slice(None), slice(90, 450), slice(5, 5), slice(440, 10**9), index, some):
            assert_array_equal(other[rows].words, one[rows].words)
        assert_array_equal(torch.cat([block.words for block in other.blocks()]), one.words)
        assert_array_equal(other.column_counts(), one.column_counts())
        assert_array_equal(other.column(131), one.column(131))
        for word in range(3):
            assert_array_equal(other.word(word).words, one.word(word).words)
            assert other.word(word).n_latents == one.word(word).n_latents


def test_permuted_latents_are_those_of_unpacked_bits():
    bits, _ = pieces()
    order = torch.randperm(bits.n_latents, generator=torch.Generator().manual_seed(2))
    places = order.argsort()
    expected = PackedBits.pack(bits.unpack()[:, order])
    assert_array_equal(bits.permuted(places).words, expected.words)
    beyond = PackedBits(bits.words.clone(), bits.n_latents)
    beyond.words[:, -1] |= -1 << bits.n_latents % 64  # as only a damaged file has them
    assert_array_equal(beyond.permuted(places).words, expected.words)


def test_counts_in_blocks_are_those_of_all_rows():
    bits, parts = pieces()
    h = bits.unpack(torch.float64)
    pairs = co_occurrence(parts)
    assert_array_equal(pairs, (h.T @ h).long())
    assert_array_equal(co_occurrence(parts, counts=pairs.clone()), 2 * pairs)
    assert_array_equal(
        co_occurrence(bits, bits.turned(torch.ones(150) > 0)), (h.T @ (1 - h)).long()
    )
    tree = chow_liu(pairs, len(bits))
    assert (tree.parents >= 0).any()
    counts = TreeCounts.of(parts, Blocks.whole(len(bits)), tree)
    parents = tree.parents.clamp_min(0)
    assert_array_equal(counts.ons[0], h.sum(0).long())
    assert_array_equal(counts.both[0], (h * h[:, parents]).sum(0).long())
    group = torch.randint(-1, 4, (len(bits),), generator=torch.Generator().manual_seed(3))
    expected = torch.stack([h[group == g].sum(0).long() for g in range(4)])
    assert_array_equal(counts_by_group(parts, group, 4), expected)


@pytest.mark.slow
def test_entropies_are_the_same_numbers():
    bits, parts = pieces()
    documents = torch.arange(len(bits)) // 7
    usual = torch.arange(len(bits)) % 5 != 0
    one = entropy(bits[usual], documents[usual])
    assert entropy(parts.where(usual), documents[usual]) == one
    assert plug_in_bits(parts, documents) == plug_in_bits(bits, documents)
    assert lower_bits(parts, documents) == lower_bits(bits, documents)
    several = bits[torch.arange(len(bits)) // 50]  # only few different rows: the bound is not 0
    assert 0 < lower_bits(several) == lower_bits(BitShards([several[:300], several[300:]]))


def test_rows_of_latents_are_the_same():
    bits, parts = pieces()
    documents, usual = torch.arange(len(bits)) // 7, torch.arange(len(bits)) % 5 != 0
    one, other = canonical(bits, usual), canonical(parts, usual)
    assert float(firing_rates(other.where(usual)).max()) <= 0.5
    assert_array_equal(other[:].words, one.words)
    assert_array_equal(on_rows(other, documents, 3, usual), on_rows(one, documents, 3, usual))
    for some, same in zip(rows_on(other), rows_on(one), strict=True):
        assert_array_equal(some, same)


def test_codes_of_another_width_than_their_manifest_says_are_refused(tmp_path):
    bits, _ = pieces()
    columns = {"token": torch.zeros(len(bits), dtype=torch.int32)}
    codes = Codes.write(tmp_path, [(bits, columns)], bits.n_latents + 64, {})
    with pytest.raises(BitlensError, match="is damaged: it has"):
        codes.parts  # noqa: B018 - read by looking


def test_codes_give_their_parts_as_they_lie_on_disk(tmp_path):
    bits, parts = pieces()
    columns = ({"token": torch.zeros(len(part), dtype=torch.int32)} for part in parts.parts)
    codes = Codes.write(tmp_path / "codes", zip(parts.parts, columns, strict=True), 150, {})
    assert_array_equal(codes.parts[:].words, bits.words)
    mapped = [part.words.untyped_storage().data_ptr() for part in codes.parts.parts]
    assert mapped == [part.words.untyped_storage().data_ptr() for _, part in codes.shards()]
    empty = Codes.write(tmp_path / "empty", [], 150, {})
    assert len(empty.parts) == 0 == len(empty.parts[:])
