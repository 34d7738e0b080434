"""Packed bits against the same operations on plain arrays of zeros and ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitlens.bits.entropies import binary_entropy
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import co_occurrence, firing_rates
from bitlens.bits.words import WORD, words_for

WIDTHS = (1, 7, 63, 64, 65, 127, 128, 130, 200)
property_test = settings(max_examples=60, deadline=None)


@st.composite
def bit_matrices(draw) -> torch.Tensor:
    """0/1 matrices of every awkward shape: one row, one column, all zero, all one, widths around a
    word."""
    rows = draw(st.sampled_from((1, 2, 63, 64, 65)) | st.integers(1, 150))
    width = draw(st.sampled_from(WIDTHS) | st.integers(1, 200))
    density = draw(st.sampled_from((0.0, 0.02, 0.5, 1.0)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return torch.from_numpy((random.random((rows, width)) < density).astype(np.float32))


@given(bit_matrices())
@property_test
def test_unpack_inverts_pack(bits):
    packed = PackedBits.pack(bits)
    assert torch.equal(packed.unpack(), bits)
    assert (len(packed), packed.n_latents) == bits.shape
    assert packed.words.shape == (len(bits), -(-bits.shape[1] // 64))


@given(bit_matrices())
@property_test
def test_every_bit_is_where_the_layout_says(bits):
    packed = PackedBits.pack(bits)
    words = packed.words.numpy().view(np.uint64)
    for row in range(0, len(bits), 17):
        as_integer = sum(int(word) << (64 * i) for i, word in enumerate(words[row]))
        assert as_integer == sum(1 << j for j in range(bits.shape[1]) if bits[row, j])


@pytest.mark.slow
@given(bit_matrices(), st.data())
@property_test
def test_bits_beyond_the_last_latent_stay_zero(bits, data):
    packed = PackedBits.pack(bits)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(bits), max_size=len(bits))))
    for result in (
        packed,
        packed.transpose(),
        packed[::2],
        packed[mask],
        packed.transpose().transpose(),
    ):
        used = result.n_latents - (words_for(result.n_latents) - 1) * WORD
        if used < WORD:
            assert not (result.words[:, -1:].numpy().view(np.uint64) >> np.uint64(used)).any()


@given(bit_matrices())
@property_test
def test_counts_equal_sums(bits):
    packed = PackedBits.pack(bits)
    assert torch.equal(packed.row_counts(), bits.long().sum(1))
    assert torch.equal(packed.column_counts(), bits.long().sum(0))
    assert torch.equal(firing_rates(packed), bits.double().mean(0))


@given(bit_matrices(), st.data())
@property_test
def test_indexing_selects_rows(bits, data):
    packed = PackedBits.pack(bits)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(bits))] * 2)))
    chosen = torch.tensor(
        data.draw(st.lists(st.integers(0, len(bits) - 1), max_size=9)), dtype=torch.long
    )
    mask = bits[:, 0] > 0
    for rows in (slice(start, stop), slice(None, None, 3), chosen, mask):
        assert torch.equal(packed[rows].unpack(), bits[rows])


def test_operations_agree_over_many_blocks():
    """More rows than any block holds, and not a multiple of one."""
    bits = (torch.rand(9001, 70, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    packed = PackedBits.pack(bits)
    assert torch.equal(packed.transpose().unpack(), bits.T)
    assert torch.equal(packed.column_counts(), bits.long().sum(0))
    assert torch.equal(co_occurrence(packed), (bits.double().T @ bits.double()).long())


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64]
)
def test_any_dtype_packs_and_unpacks(dtype):
    bits = (torch.arange(3 * 66).reshape(3, 66) % 5 == 0).to(dtype)
    assert torch.equal(PackedBits.pack(bits).unpack(dtype), bits)


def test_non_zero_is_one_whatever_its_value():
    values = torch.tensor([[0.0, -0.0, 1e-30, -3.0, float("inf"), 0.5]])
    assert PackedBits.pack(values).unpack().tolist() == [[0, 0, 1, 1, 1, 1]]


def test_leading_dimensions_become_rows():
    bits = torch.rand(2, 3, 5) < 0.5
    assert torch.equal(PackedBits.pack(bits).unpack(torch.bool), bits.reshape(6, 5))


def test_views_that_are_not_contiguous_pack_alike():
    bits = (torch.rand(64, 30, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    assert torch.equal(PackedBits.pack(bits.T).words, PackedBits.pack(bits.T.contiguous()).words)
    assert torch.equal(PackedBits.pack(bits).transpose()[::2].unpack(), bits.T[::2])


def test_no_rows_is_a_valid_matrix():
    packed = PackedBits.pack(torch.zeros(0, 65))
    assert packed.unpack().shape == (0, 65)
    assert packed.column_counts().tolist() == [0] * 65
    assert len(packed.row_counts()) == 0
    assert packed.transpose().n_latents == 0


@pytest.mark.parametrize(
    "words",
    [
        torch.zeros(2, 1, dtype=torch.int32),
        torch.zeros(2, 2, dtype=torch.int64),
        torch.zeros(2, dtype=torch.int64),
    ],
    ids=["dtype", "width", "dimensions"],
)
def test_words_of_another_shape_are_refused(words):
    with pytest.raises(ValueError, match="words must be int64"):
        PackedBits(words, 64)


def test_binary_entropy_at_known_points():
    p = torch.tensor([0.0, 1.0, 0.5, 0.25, 0.11])
    expected = [0.0, 0.0, 1.0, 2 - 0.75 * np.log2(3), 0.4999158]
    assert binary_entropy(p).dtype == torch.float64
    assert binary_entropy(p).tolist() == pytest.approx(expected, abs=1e-6)
    assert binary_entropy(p)[:2].tolist() == [0.0, 0.0]
