"""Every kernel against brute force on plain arrays, on the CPU and, in CPU tensors, the kernels for
a GPU."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitlens.bits import covariance_cpu, cpu, cuda, products, statistics
from bitlens.bits.packed import PackedBits
from bitlens.bits.words import LANES, turn
from bitlens.errors import BitlensError

WIDTHS = (1, 63, 64, 65, 127, 128, 129, 130, 200)
ROWS = (1, 2, 3, 4, 5, 63, 64, 65, 127, 130, 255, 256, 257, 511, 512, 513, 700)
property_test = settings(max_examples=25, deadline=None)


def random_bits(
    random: np.random.Generator, rows: int, width: int, density: float = 0.3
) -> np.ndarray:
    return (random.random((rows, width)) < density).astype(np.uint8)


@st.composite
def bit_matrices(draw, rows=None, width=None, at_least: int = 1) -> np.ndarray:
    """uint8 matrices of 0 and 1, of awkward shapes; some have columns that are constant, equal or
    opposite."""
    rows = (
        draw((st.sampled_from(ROWS) | st.integers(1, 700)).filter(lambda n: n >= at_least))
        if rows is None
        else rows
    )
    width = draw(st.sampled_from(WIDTHS) | st.integers(1, 200)) if width is None else width
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bits = random_bits(random, rows, width, draw(st.sampled_from((0.0, 0.02, 0.3, 0.5, 0.98, 1.0))))
    if draw(st.booleans()):
        some = random.integers(0, width, 4)
        bits[:, some[0]], bits[:, some[1]] = 0, 1
        bits[:, some[2]] = bits[:, some[3]]
        bits[:, -1] = 1 - bits[:, 0]
    return bits


def pack(bits: np.ndarray) -> np.ndarray:
    """0/1 `[n, width]` -> uint64 `[n, words]`, by numpy"""
    padded = np.pad(bits.astype(np.uint8), ((0, 0), (0, -bits.shape[1] % 64)))
    return np.packbits(np.ascontiguousarray(padded), axis=1, bitorder="little").view(np.uint64)


def packed(bits: np.ndarray) -> PackedBits:
    return PackedBits(torch.from_numpy(pack(bits).view(np.int64)), bits.shape[1])


def gram(bits: np.ndarray) -> np.ndarray:
    wide = bits.astype(np.float64)  # exact below 2^53, and much faster than integers
    return (wide.T @ wide).astype(np.int64)


def distances_between(queries: np.ndarray, codes: np.ndarray) -> np.ndarray:
    a, b = queries.astype(np.float64), codes.astype(np.float64)
    return (a.sum(1)[:, None] + b.sum(1) - 2 * a @ b.T).astype(np.int64)


def nearest_of(distances: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, 1), order


def scaled_covariances(bits: np.ndarray) -> np.ndarray:
    """`n N_ij - c_i c_j`, 0 on the diagonal"""
    counts = bits.sum(0, dtype=np.int64)
    v = len(bits) * gram(bits) - counts[:, None] * counts
    np.fill_diagonal(v, 0)
    return v


def covariance_of(bits: np.ndarray) -> tuple[float, np.ndarray]:
    """-> (penalty, rounded once, from integers; gradient, from integer signs)"""
    v, n = scaled_covariances(bits), len(bits)
    gradient = 2 / (n - 1) * ((bits - bits.mean(0)) @ np.sign(v))
    return int(np.abs(v).sum()) / (n * (n - 1)), gradient


def close(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> bool:
    return bool(
        np.abs(actual - expected).max(initial=0)
        <= tolerance * max(1e-30, np.abs(expected).max(initial=0))
    )


# --- pack, turn, count ----------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.sampled_from((0.0, 0.01, 0.5, 1.0)))
@property_test
def test_turn_transposes_sixteen_matrices_at_once(seed, density):
    matrices = random_bits(np.random.default_rng(seed), LANES * 64, 64, density).reshape(
        LANES, 64, 64
    )
    block = np.ascontiguousarray(pack(matrices.reshape(-1, 64)).reshape(LANES, 64).T).reshape(-1)
    turn(block, np.empty_like(block))
    expected = pack(matrices.transpose(0, 2, 1).reshape(-1, 64)).reshape(LANES, 64).T
    assert np.array_equal(block.reshape(64, LANES), expected)


@given(bit_matrices(), st.integers(0, 2**32 - 1))
@property_test
def test_step_and_pack_is_one_above_zero_only(bits, seed):
    above = np.array([1e-45, 1e-38, 0.5, 3e38, np.inf], np.float32)
    rest = np.array([0.0, -0.0, -1e-45, -0.5, -3e38, -np.inf, np.nan, -np.nan], np.float32)
    random = np.random.default_rng(seed)
    z = np.where(bits, random.choice(above, bits.shape), random.choice(rest, bits.shape))
    assert np.array_equal(cpu.pack(z), pack(bits))


@given(bit_matrices())
@property_test
def test_transpose_is_the_matrix_transpose_and_its_own_inverse(bits):
    columns = cpu.transpose(pack(bits), bits.shape[1])
    assert np.array_equal(columns, pack(bits.T))
    assert np.array_equal(cpu.transpose(columns, len(bits)), pack(bits))


def test_transpose_of_more_rows_than_a_task_takes():
    bits = random_bits(np.random.default_rng(0), 64 * LANES * 2 + 65, 70)
    assert np.array_equal(cpu.transpose(pack(bits), 70), pack(bits.T))


@given(bit_matrices())
@property_test
def test_column_counts_are_column_sums(bits):
    assert np.array_equal(cpu.column_counts(pack(bits), bits.shape[1]), bits.sum(0, dtype=np.int64))


@pytest.mark.parametrize("rows", [254, 255, 256, 509, 510, 511, 765, 1021])
def test_eight_bit_counters_do_not_overflow(rows):
    bits = np.ones((rows, 67), np.uint8)
    assert cpu.column_counts(pack(bits), 67).tolist() == [rows] * 67


# --- pairs of columns -----------------------------------------------------------------------------


@given(bit_matrices())
@property_test
def test_co_occurrence_is_the_gram_matrix(bits):
    assert np.array_equal(cpu.co_occurrence(pack(bits.T)), gram(bits))


@given(bit_matrices(at_least=2), st.integers(0, 2**32))
@property_test
def test_co_occurrence_of_two_codes_is_their_product(bits, seed):
    others = np.random.default_rng(seed).integers(0, 2, (len(bits), seed % 150 + 1), np.uint8)
    expected = bits.astype(np.int64).T @ others.astype(np.int64)
    assert np.array_equal(cpu.co_occurrence(pack(bits.T), pack(others.T)), expected)
    assert np.array_equal(statistics.co_occurrence(packed(bits), packed(others)).numpy(), expected)
    assert np.array_equal(cuda.co_occurrence(packed(bits), packed(others)).numpy(), expected)


def test_codes_of_different_rows_have_no_co_occurrence():
    a, b = (PackedBits.pack(torch.ones(n, 3)) for n in (4, 5))
    with pytest.raises(
        BitlensError, match=r"Codes of 4 rows and of 5 are not of the same hidden states\."
    ):
        statistics.co_occurrence(a, b)


@pytest.mark.parametrize("words", [cpu.CHUNK - 1, cpu.CHUNK, cpu.CHUNK + 1, 2 * cpu.CHUNK + 3])
def test_co_occurrence_over_several_chunks_of_rows(words):
    columns = np.random.default_rng(0).integers(0, 2**64, (67, words), np.uint64)
    expected = [np.bitwise_count(column & columns).sum(1, dtype=np.int64) for column in columns]
    assert np.array_equal(cpu.co_occurrence(columns), expected)


def test_co_occurrence_of_more_rows_than_are_turned_at_once():
    words = np.random.default_rng(0).integers(0, 8, ((1 << 20) + 65, 1), np.int64)
    columns = [words[:, 0] >> j & 1 for j in range(3)]
    expected = [[int((a & b).sum()) for a in columns] for b in columns]
    assert statistics.co_occurrence(PackedBits(torch.from_numpy(words), 3)).tolist() == expected


@pytest.mark.slow
def test_counts_stay_exact_beyond_31_bits():
    words = (1 << 25) + 3
    columns = np.broadcast_to(
        np.uint64(2**64 - 1), (2, words)
    )  # 2^31 + 192 rows, all on, in no memory
    assert cpu.co_occurrence(columns).tolist() == [[64 * words] * 2] * 2


# --- distances between rows -----------------------------------------------------------------------


@st.composite
def searches(draw) -> tuple[np.ndarray, np.ndarray, int]:
    """-> (queries, codes, k); few distinct codes or narrow ones have many equal distances"""
    codes = draw(bit_matrices())
    if draw(st.booleans()):
        codes = codes[np.random.default_rng(0).integers(0, min(3, len(codes)), len(codes))]
    queries = draw(bit_matrices(rows=draw(st.integers(1, 5)), width=codes.shape[1]))
    k = draw(st.sampled_from((1, 2, len(codes))) | st.integers(1, len(codes)))
    return queries, codes, min(k, len(codes))


@given(searches())
@property_test
def test_nearest_is_sorted_and_among_equals_has_the_lowest_index(search):
    queries, codes, k = search
    distances, indices = cpu.nearest(pack(queries), pack(codes), k)
    expected = nearest_of(distances_between(queries, codes), k)
    assert np.array_equal(distances, expected[0])
    assert np.array_equal(indices, expected[1])


@pytest.mark.parametrize("k", [1, 7, 1500])
def test_nearest_in_more_codes_than_are_turned_at_once(k):
    random = np.random.default_rng(0)
    queries, codes = random_bits(random, 3, 70), random_bits(random, 1500, 70)
    distances, indices = cpu.nearest(pack(queries), pack(codes), k)
    expected = nearest_of(distances_between(queries, codes), k)
    assert np.array_equal(distances, expected[0])
    assert np.array_equal(indices, expected[1])


# --- covariance -----------------------------------------------------------------------------------


@given(bit_matrices(at_least=2))
@property_test
def test_covariance_penalty_is_exact_and_its_gradient_has_exact_signs(bits):
    penalty, gradient = covariance_cpu.covariance(pack(bits), bits.shape[1])
    expected, slopes = covariance_of(bits)
    assert penalty == expected
    assert gradient.shape == bits.shape
    assert close(gradient, slopes, 1e-6)


@pytest.mark.parametrize(
    "width", [64 + covariance_cpu.BLOCK, 65 + covariance_cpu.BLOCK, 2 * covariance_cpu.BLOCK + 200]
)
def test_covariance_of_more_latents_than_are_paired_at_once(width):
    bits = random_bits(np.random.default_rng(width), 70, width, 0.4)
    penalty, gradient = covariance_cpu.covariance(pack(bits), width)
    expected, slopes = covariance_of(bits)
    assert penalty == expected
    assert close(gradient, slopes, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "rows", [covariance_cpu.INT32_ROWS, covariance_cpu.INT32_ROWS + 1, 50_000, 100_000]
)
def test_covariance_at_the_end_of_32_bits_and_beyond(rows):
    """The largest values there are, n^2 / 4 for columns that are equal or opposite: beyond 2^31
    from 92,682 rows on."""
    bits = random_bits(np.random.default_rng(rows), rows, 70, 0.5)
    bits[:, 1] = bits[:, 0] = np.arange(rows) % 2
    bits[:, 2], bits[:, 3], bits[:, 69] = 1 - bits[:, 0], 1, 1
    penalty, gradient = covariance_cpu.covariance(pack(bits), 70)
    expected, slopes = covariance_of(bits)
    assert penalty == expected
    assert close(gradient, slopes, 1e-6)


def test_pairs_without_covariance_count_nothing():
    """All 2^6 codes of six bits: every covariance is zero, and so are the gradients of the six and
    of constants."""
    bits = np.array([[code >> j & 1 for j in range(6)] + [0, 1] for code in range(64)], np.uint8)
    penalty, gradient = covariance_cpu.covariance(pack(bits), 8)
    assert penalty == 0
    assert not gradient.any()


# --- bits times floats ----------------------------------------------------------------------------

SIZES = st.sampled_from((1, 3, 16, 17, 64, 70))


@given(bit_matrices(at_least=2), st.integers(0, 2**32 - 1), st.sampled_from((0.0, 1.0, -1000.0)))
@property_test
def test_column_std_is_unbiased(bits, seed, offset):
    z = np.random.default_rng(seed).normal(offset, 2, bits.shape).astype(np.float32)
    z[:, 0] = offset
    expected = z.astype(np.float64).std(0, ddof=1)
    std = products.column_std(z)
    assert std[0] == 0
    assert np.abs(std - expected).max() <= 1e-5 * np.maximum(1, np.abs(z)).max()


def test_column_std_of_more_columns_than_a_task_takes():
    z = np.random.default_rng(0).normal(size=(70, 600)).astype(np.float32)
    assert close(products.column_std(z), z.astype(np.float64).std(0, ddof=1))


@given(bit_matrices(), st.integers(0, 2**32 - 1))
@property_test
def test_pack_window_is_open_and_has_no_room_for_nan(bits, seed):
    random = np.random.default_rng(seed)
    width = random.choice(
        np.array([0.0, 1e-45, 0.5, 2.0, np.inf, np.nan], np.float32), bits.shape[1]
    )
    values = random.choice(
        np.array([0.0, -0.0, 1e-45, 0.4, -3.0, np.inf, -np.inf, np.nan], np.float32), bits.shape
    )
    z = np.where(bits, values, random.choice([1, -1], bits.shape) * width).astype(
        np.float32
    )  # many on the very edge
    assert np.array_equal(cpu.pack(z, width), pack(np.abs(z) < width))


@given(bit_matrices(), SIZES, st.integers(0, 2**32 - 1))
@property_test
def test_gather_sums_is_the_product(bits, d, seed):
    matrix = np.random.default_rng(seed).normal(size=(bits.shape[1], d)).astype(np.float32)
    sums = products.gather_sums(pack(bits), matrix)
    assert sums.shape == (len(bits), d)
    assert (
        np.abs(sums - bits @ matrix.astype(np.float64)).max()
        <= 1e-5 * (1 + bits @ np.abs(matrix)).max()
    )


def test_gather_sums_of_wide_codes():
    random = np.random.default_rng(0)
    bits, matrix = (
        random_bits(random, 30, 64 * 9 + 5),
        random.normal(size=(64 * 9 + 5, 20)).astype(np.float32),
    )
    assert close(products.gather_sums(pack(bits), matrix), bits @ matrix.astype(np.float64))


@given(bit_matrices(), st.data(), SIZES, st.booleans())
@property_test
def test_backward_is_the_chain_rule(on, data, d, with_penalty):
    n, n_latents = on.shape
    inside = data.draw(bit_matrices(rows=n, width=n_latents))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    x, error, W_dec = (
        random.normal(size=size).astype(np.float32) for size in ((n, d), (n, d), (n_latents, d))
    )
    slope, penalty = (
        random.normal(size=n_latents).astype(np.float32),
        random.normal(size=on.shape).astype(np.float32),
    )
    out = tuple(
        np.full(size, np.nan, np.float32) for size in ((d, n_latents), n_latents, (n_latents, d))
    )
    more = penalty if with_penalty else None
    products.backward(x, error, pack(on.T), pack(inside.T), W_dec, slope, more, out)
    exact = (x, error, W_dec, slope, penalty)
    x, error, W_dec, slope, penalty = (a.astype(np.float64) for a in exact)
    dz = inside * (error @ W_dec.T + slope + penalty * with_penalty)
    size = inside * (np.abs(error) @ np.abs(W_dec).T + np.abs(slope) + np.abs(penalty))
    for actual, expected, terms in zip(
        out,
        (x.T @ dz, dz.sum(0), on.T @ error),
        (np.abs(x).T @ size, size.sum(0), on.T @ np.abs(error)),
        strict=True,
    ):
        assert (
            np.abs(actual - expected) <= 1e-5 * terms
        ).all()  # of what was added up, whatever cancels


# --- threads --------------------------------------------------------------------------------------


def results_of_all_kernels() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    bits, inside = random_bits(random, 700, 200), random_bits(random, 700, 200, 0.1)
    x, W_dec = (
        random.normal(size=(700, 9)).astype(np.float32),
        random.normal(size=(200, 9)).astype(np.float32),
    )
    z, slope = (
        random.normal(size=(700, 200)).astype(np.float32),
        random.normal(size=200).astype(np.float32),
    )
    words, columns, within, narrow = pack(bits), pack(bits.T), pack(inside.T), pack(bits[:, :7])
    gradients = tuple(np.empty(size, np.float32) for size in ((9, 200), 200, (200, 9)))
    kernels = {
        "pack": lambda: cpu.pack(z),
        "transpose": lambda: cpu.transpose(words, 200),
        "column_counts": lambda: cpu.column_counts(words, 200),
        "co_occurrence": lambda: cpu.co_occurrence(columns),
        "nearest": lambda: cpu.nearest(narrow[:9], narrow, 300),  # many equals
        "covariance": lambda: covariance_cpu.covariance(words, 200),
        "column_std": lambda: products.column_std(z),
        "pack_window": lambda: cpu.pack(z, np.abs(slope)),
        "gather_sums": lambda: products.gather_sums(words, W_dec),
        "backward": lambda: products.backward(x, x, columns, within, W_dec, slope, z, gradients),
    }
    results, threads = [], torch.get_num_threads()
    for name, kernel in kernels.items():
        result = kernel()
        assert torch.get_num_threads() == threads, name
        results += result if isinstance(result, tuple) else [result]
    return [*(np.asarray(r) for r in results if r is not None), *gradients]


def test_any_number_of_threads_gives_the_same_results_and_torch_keeps_its_own():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = results_of_all_kernels()
        torch.set_num_threads(2)
        two = results_of_all_kernels()
    finally:
        torch.set_num_threads(threads)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


# --- the kernels for a GPU, on CPU tensors --------------------------------------------------------

TILES = st.sampled_from(((1024, 1 << 16), (64, 100), (7, 13), (33, 64)))  # cuda.TILE, cuda.ROWS


@pytest.fixture(scope="module")
def in_tiles():
    """`in_tiles((tile, rows))` sets the sizes of the kernels' tiles until the module's end."""
    with pytest.MonkeyPatch.context() as patch:

        def change(sizes: tuple[int, int]) -> None:
            patch.setattr(cuda, "TILE", sizes[0])
            patch.setattr(cuda, "ROWS", sizes[1])

        yield change


@pytest.mark.slow
@given(bit_matrices(at_least=2), TILES)
@property_test
def test_counts_and_covariance_for_a_gpu(in_tiles, bits, tiles):
    in_tiles(tiles)
    h = packed(bits)
    assert np.array_equal(cuda.co_occurrence(h).numpy(), gram(bits))
    assert torch.equal(cuda.co_occurrence(h), statistics.co_occurrence(h))
    (penalty, gradient), (exact, slopes) = cuda.covariance(h), covariance_of(bits)
    assert penalty.dtype == torch.float64
    assert float(penalty) == pytest.approx(exact, rel=1e-14)
    assert gradient.dtype == torch.float32
    assert close(gradient.numpy(), slopes, 1e-6)
    on_cpu, same_slopes = statistics.covariance(h)
    assert float(penalty) == pytest.approx(float(on_cpu), rel=1e-14)
    assert close(gradient.numpy(), same_slopes.numpy(), 1e-6)


@given(searches(), TILES)
@property_test
def test_distances_for_a_gpu(in_tiles, search, tiles):
    in_tiles(tiles)
    (a, b, k), (queries, codes) = search, map(packed, search[:2])
    expected = distances_between(a, b)
    assert np.array_equal(cuda.hamming(queries, codes).numpy(), expected)
    found, same = cuda.nearest(queries, codes, k), statistics.nearest(queries, codes, k)
    for actual, brute, other in zip(found, nearest_of(expected, k), same, strict=True):
        assert np.array_equal(actual.numpy(), brute)
        assert torch.equal(actual, other)
        assert actual.dtype == other.dtype


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1))
@property_test
def test_products_of_bytes_are_exact_at_any_size(m, k, n, seed):
    random = np.random.default_rng(seed)
    a, b = (random.integers(-1, 2, size).astype(np.int8) for size in ((m, k), (k, n)))
    product = cuda.product(torch.from_numpy(a), torch.from_numpy(b))
    assert product.dtype == torch.int32
    assert np.array_equal(product.numpy(), a.astype(np.int64) @ b)


# --- the layer that callers see -------------------------------------------------------------------


def ones(rows: int, width: int = 3) -> PackedBits:
    return packed(np.ones((rows, width), np.uint8))


def rows_in_no_memory(rows: int) -> PackedBits:
    return PackedBits(torch.zeros(1, 1, dtype=torch.int64).expand(rows, 1), 3)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: statistics.firing_rates(ones(0)), "There are no rows"),
        (lambda: statistics.covariance(ones(0)), "between 2 and 2^20 rows, not 0"),
        (lambda: statistics.covariance(ones(1)), "between 2 and 2^20 rows, not 1"),
        (
            lambda: statistics.covariance(rows_in_no_memory(2**20 + 1)),
            "between 2 and 2^20 rows, not 1,048,577",
        ),
        (lambda: statistics.nearest(ones(2), ones(5), 0), "There are 5 codes to search.*not 0"),
        (lambda: statistics.nearest(ones(2), ones(5), -1), "not -1"),
        (lambda: statistics.nearest(ones(2), ones(5), 6), "not 6"),
        (lambda: statistics.nearest(ones(2), ones(0), 1), "There are 0 codes"),
        (
            lambda: statistics.nearest(ones(2, 3), ones(5, 4), 1),
            "3 latents cannot be compared with codes of 4",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(ask, message):
    with pytest.raises(BitlensError, match=message.replace("^", r"\^")) as error:
        ask()
    assert "\n" not in str(error.value)
    assert str(error.value).count(". ") == 0
    assert str(error.value).endswith(".")


def test_no_rows_have_no_counts():
    assert statistics.co_occurrence(ones(0)).tolist() == [[0] * 3] * 3


@pytest.mark.newest
def test_no_queries_have_no_neighbours():
    assert [part.shape for part in cuda.nearest(ones(0), ones(4), 2)] == [(0, 2), (0, 2)]
    assert [part.shape for part in statistics.nearest(ones(0), ones(4), 2)] == [(0, 2), (0, 2)]


def everything(bits: PackedBits) -> list[torch.Tensor]:
    penalty, gradient = statistics.covariance(bits)
    return [
        bits.unpack(),
        bits.row_counts(),
        bits.column_counts(),
        bits.transpose().words,
        statistics.firing_rates(bits),
        statistics.co_occurrence(bits),
        penalty,
        gradient,
        *statistics.nearest(bits[:9], bits, 5),
    ]


def same(ones: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ones, others, strict=True))


def test_words_that_cannot_be_written_are_only_read(tmp_path):
    words = pack(random_bits(np.random.default_rng(0), 150, 130))
    expected = everything(PackedBits(torch.from_numpy(words.view(np.int64)), 130))
    words.tofile(tmp_path / "words")
    mapped = np.memmap(
        tmp_path / "words", np.int64, "r", shape=words.shape
    )  # a write would end the process
    frozen = words.view(np.int64).copy()
    frozen.flags.writeable = False
    for array in (mapped, frozen):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch has no tensors that are read-only
            bits = PackedBits(torch.from_numpy(array), 130)
        assert same(everything(bits), expected)
    assert np.array_equal(mapped, words.view(np.int64))


@pytest.mark.parametrize("rows", [slice(None, None, 2), slice(3, 140, 7), slice(1, None)], ids=str)
def test_slices_that_are_not_contiguous_count_alike(rows):
    bits = random_bits(np.random.default_rng(0), 150, 130)
    assert same(
        everything(packed(bits)[rows]), everything(packed(np.ascontiguousarray(bits[rows])))
    )


def test_columns_of_words_that_are_not_contiguous_count_alike():
    bits = random_bits(np.random.default_rng(0), 150, 130)
    around = torch.full((150, 9), -1)
    around[:, 1:7:2] = packed(bits).words
    assert same(everything(PackedBits(around[:, 1:7:2], 130)), everything(packed(bits)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(70, 130), (5, 7, 65), (2, 3, 4, 64), (130,), (0, 65)], ids=str)
def test_step_packs_what_is_above_zero(dtype, shape):
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    z[z.abs() < 0.3] = 0
    special = torch.tensor(
        [0.0, -0.0, torch.nan, torch.inf, -torch.inf, torch.finfo(dtype).tiny, 1e-320], dtype=dtype
    )
    z.view(-1)[: len(special) * (z.numel() > 0)] = special[: z.numel()]
    stepped = PackedBits.step(z)
    assert stepped.n_latents == shape[-1]
    assert torch.equal(stepped.words, PackedBits.pack(z > 0).words)
    assert torch.equal(stepped.unpack(torch.bool), (z > 0).reshape(-1, shape[-1]))
    if z.ndim == 2 and len(z):
        assert torch.equal(PackedBits.step(z.T).unpack(torch.bool), z.T > 0)
        assert torch.equal(
            PackedBits.step(z[:, 1:].requires_grad_()).unpack(torch.bool), z[:, 1:] > 0
        )


def test_window_packs_what_is_inside():
    z = torch.randn(70, 130, generator=torch.Generator().manual_seed(0))
    width = torch.rand(130, generator=torch.Generator().manual_seed(1))
    for values, edges in ((z, width), (z[::2, 1:66], width[1:66]), (z.T, width[:1].expand(70))):
        inside = PackedBits.window(values, edges)
        assert inside.n_latents == values.shape[1]
        assert torch.equal(inside.unpack(torch.bool), values.abs() < edges)
