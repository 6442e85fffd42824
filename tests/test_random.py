"""Keys and draws against jax.random, bit for bit or within ulps of float64, and against the published known answers."""

import math
from fractions import Fraction

import jax
import jax.extend.random
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, jvp, vmap

import alexnet_func as af
from alexnet_func import continuous, distributions, threefry
from parity.draws import as_tensor, draws

SEEDS = (*range(62), 2**31, 2**32 - 1)
KEYS = torch.stack([af.random.key(seed) for seed in SEEDS])
KEY_DATA = np.array([[0, seed] for seed in SEEDS], dtype=np.uint32)
# One draw of each kind: every pass of the cipher costs seconds to compile.
COMPILED = {
    *("split 2x3", "fold_in 2^31", "bits 3x5", "uniform from -0.1", "uniform of bounds", "bernoulli 0.3"),
    *("randint", "randint of bounds", "permutation 5000", "permutation of each column", "choice by weight"),
}
LOWEST = np.nextafter(np.float32(-1), np.float32(0))
LOGITS = torch.linspace(-2, 2, 40).view(5, 8).cos() * 3


def real_draws(r, key):
    """What is computed with transcendental functions: float32 draws and the largest of them."""
    lower, upper = (torch.tensor([[-1.0], [0.2], [4.0]]), torch.tensor(5.0))
    if r is jax.random:
        lower, upper, logits = lower.numpy(), upper.numpy(), LOGITS.numpy()
    else:
        lower, upper, logits = (t.to(key.device) for t in (lower, upper, LOGITS))
    return {
        "normal": r.normal(key, (1001,)),
        "exponential": r.exponential(key, (1001,)),
        "gumbel": r.gumbel(key, (1001,)),
        "truncated_normal": r.truncated_normal(key, -2, 0.5, (1001,)),
        "truncated_normal of bounds": r.truncated_normal(key, lower, upper, (3, 300)),
        "categorical": r.categorical(key, logits, shape=(40, 5)),
    }


@pytest.fixture(scope="module")
def expected():
    theirs = jax.jit(jax.vmap(lambda key: draws(jax.random, key)))(KEY_DATA)
    return {name: as_tensor(value) for name, value in theirs.items()}


@pytest.fixture(scope="module")
def compiled():
    # One key at a time: the graph is built once and serves all 64.
    def both(seed):
        key = af.random.key(seed)
        return draws(af.random, key, COMPILED), real_draws(af.random, key)

    return torch.compile(both, fullgraph=True, dynamic=False, options=af.train.compile_options())


def assert_equal_dicts(ours, expected):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert ours[name].dtype == value.dtype, name
        assert torch.equal(ours[name], value), name


def raw(seed):
    return np.array([0, seed], np.uint32)


def ulps(ours, exact):
    """The largest distance in float32 steps at the float64 values."""
    exact = np.asarray(exact)
    return (np.abs(np.asarray(ours, np.float64) - exact) / np.spacing(np.abs(exact).astype(np.float32))).max()


def test_a_key_is_jaxs_key_data():
    for seed in SEEDS:
        assert torch.equal(af.random.key(seed), as_tensor(jax.random.key_data(jax.random.key(np.uint32(seed)))))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint32, torch.int32])
def test_seeds_in_tensors_map(dtype):
    seeds = torch.tensor(SEEDS).to(dtype)
    assert torch.equal(vmap(af.random.key)(seeds), KEYS)
    assert torch.equal(af.random.key(seeds[-1]), KEYS[-1])


def test_a_seed_in_a_tensor_is_taken_modulo_as_jax_takes_it():
    ours = vmap(af.random.key)(torch.tensor([-1, 2**32 + 5]))
    for key, seed in zip(ours, (-1, 2**32 + 5), strict=True):
        assert torch.equal(key, as_tensor(jax.random.key_data(jax.random.key(seed))))


class OnlyDlpack:
    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class OnlyArray:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


@pytest.mark.parametrize(
    "convert",
    [
        *(np.asarray, jnp.asarray, OnlyArray, OnlyDlpack),
        *(lambda words: words.view(np.int32), lambda words: torch.from_numpy(words.copy())),
        *(lambda words: torch.from_numpy(words.view(np.int32)), jax.random.wrap_key_data),
    ],
)
def test_keys_of_any_library(convert):
    words = np.array([[7, 2**32 - 1], [2**31, 3]], np.uint32)
    assert torch.equal(af.random.wrap_key_data(convert(words)), as_tensor(words))
    assert torch.equal(af.random.key(convert(words[1])), as_tensor(words[1]))
    assert torch.equal(af.random.uniform(af.random.key(convert(words[0]))), as_tensor(jax.random.uniform(words[0])))


def test_key_data_and_clones_are_the_words():
    key = af.random.key(5)
    there = jax.random.wrap_key_data(af.random.key_data(key).numpy().view(np.uint32))
    assert torch.equal(af.random.key(there), key)
    for copy in (af.random.clone(KEYS), af.random.wrap_key_data(af.random.key_data(KEYS))):
        assert torch.equal(copy, KEYS)
        assert copy.data_ptr() != KEYS.data_ptr()
    assert torch.equal(vmap(af.random.clone)(KEYS), KEYS)


def test_eager_draws_equal_jax(expected):
    ours = [draws(af.random, key) for key in KEYS]
    assert_equal_dicts({name: torch.stack([d[name] for d in ours]) for name in ours[0]}, expected)


def test_vmapped_draws_equal_jax(expected):
    assert_equal_dicts(vmap(lambda key: draws(af.random, key))(KEYS), expected)


@pytest.mark.compiled
def test_compiled_draws_equal_jax(expected, compiled):
    ours = [compiled(seed)[0] for seed in torch.tensor(SEEDS)]
    assert_equal_dicts(
        {name: torch.stack([d[name] for d in ours]) for name in ours[0]}, {name: expected[name] for name in COMPILED}
    )


def assert_close_draws(ours, key_data):
    """Real draws against the float64 values at JAX's uniforms."""
    u = np.asarray(jax.random.uniform(key_data, (1001,)), np.float64)
    tail = np.asarray(jax.random.uniform(key_data, (3, 300)), np.float64)
    signed = np.asarray(jax.random.uniform(key_data, (1001,), minval=LOWEST, maxval=1), np.float64)
    assert ulps(ours["normal"], math.sqrt(2) * scipy.special.erfinv(signed)) <= 2
    assert ulps(ours["exponential"], -np.log1p(-u)) <= 2
    assert ulps(ours["gumbel"], -np.log(-np.log(np.maximum(u, np.finfo(np.float32).tiny)))) <= 2
    assert ulps(ours["truncated_normal"], truncated(u, -2, 0.5)) <= 2
    bounds = zip(tail, (-1.0, float(np.float32(0.2)), 4.0), strict=True)
    exact = np.stack([truncated(row, low, 5.0) for row, low in bounds])
    assert ulps(ours["truncated_normal of bounds"], exact) <= 2
    noise = np.asarray(jax.random.uniform(key_data, (40, 5, 8)), np.float64)
    scores = LOGITS.double().numpy() - np.log(-np.log(noise))
    chosen = np.take_along_axis(scores, ours["categorical"].long().numpy()[..., None], -1)[..., 0]
    assert (scores.max(-1) - chosen).max() <= 1e-6


def truncated(u, low, high):
    """By the error function around zero, by the tail beyond."""
    if low >= 1:
        return -truncated(1 - u, -high, -low)
    if high <= -1:
        low, high = scipy.special.ndtr([low, high])
        return scipy.special.ndtri(low + u * (high - low))
    low, high = scipy.special.erf(np.array([low, high]) * math.sqrt(0.5))
    return math.sqrt(2) * scipy.special.erfinv(low + u * (high - low))


def test_real_draws_are_within_two_ulp_of_float64():
    mapped = vmap(lambda key: real_draws(af.random, key))(KEYS)
    for i, key in enumerate(KEYS):
        assert_close_draws(real_draws(af.random, key), KEY_DATA[i])
        assert_close_draws({name: value[i] for name, value in mapped.items()}, KEY_DATA[i])


@pytest.mark.compiled
def test_compiled_real_draws_are_within_two_ulp_of_float64(compiled):
    for seed, key_data in zip(torch.tensor(SEEDS), KEY_DATA, strict=True):
        assert_close_draws(compiled(seed)[1], key_data)


def test_real_draws_are_jaxs_within_its_own_error():
    for key, key_data in zip(KEYS[:8], KEY_DATA, strict=False):
        theirs = real_draws(jax.random, key_data)
        for name, value in real_draws(af.random, key).items():
            worst = 2e-2 if "bounds" in name else 3e-5 if "normal" in name else 2e-6  # of tails up to 5, in float32
            assert np.abs(value.numpy() - np.asarray(theirs[name])).max() <= worst, name


# Every seventh of the 2^23 uniforms there are, the first and the last among them.
WORDS = torch.cat([torch.arange(0, 2**23, 7, dtype=torch.int32), torch.tensor([2**23 - 1], dtype=torch.int32)]) << 9
UNIFORMS = distributions.to_unit(WORDS)


def test_normals_exponentials_and_gumbels_of_all_uniforms():
    u = UNIFORMS.double().numpy()
    assert u.max() == 1 - 2.0**-23
    assert ulps(-torch.log1p(-UNIFORMS), -np.log1p(-u)) <= 2
    assert ulps(distributions.to_gumbel(WORDS), -np.log(-np.log(np.maximum(u, np.finfo(np.float32).tiny)))) <= 2
    signed = np.maximum(UNIFORMS.numpy() * 2 + LOWEST, LOWEST)
    assert ulps(distributions.to_normal(WORDS), math.sqrt(2) * scipy.special.erfinv(signed.astype(np.float64))) <= 2


@pytest.mark.parametrize(
    ("low", "high"),
    [(-2.0, 2.0), (0.25, 0.5), (0.0, 2.0**-10), (1e-9, 1e-8), (-9.0, 1.0), (0.99, math.inf), (5.0, 6.0), (-9.0, -8.0)],
)
def test_truncated_normals_of_all_uniforms(low, high):
    low, high = float(np.float32(low)), float(np.float32(high))
    values = distributions.truncate(UNIFORMS, torch.tensor(low), torch.tensor(high))
    assert low < values.min()
    assert values.max() < high
    assert ulps(values[1:], truncated(UNIFORMS[1:].double().numpy(), low, high)) <= 2  # the first lies beside `low`
    assert values[0] == np.nextafter(np.float32(low), np.float32(math.inf))


# XLA takes subnormal numbers for zero: no result may be one.
BOUNDS = st.floats(-(2.0**100), 2.0**100, width=32).map(lambda bound: bound if abs(bound) > 2.0**-60 else 0.0)


@given(
    st.integers(0, 2**32 - 1),
    BOUNDS,
    BOUNDS,
    st.sampled_from([(), (3,), (2, 0), (4, 2)]),
)
@settings(max_examples=60)
def test_uniforms_of_any_bounds_equal_jax(seed, minval, maxval, shape):
    theirs = as_tensor(jax.random.uniform(raw(seed), shape, minval=minval, maxval=maxval))
    key, bounds = af.random.key(seed), (torch.tensor(minval), torch.tensor(maxval))
    assert torch.equal(af.random.uniform(key, shape, minval, maxval), theirs)
    assert torch.equal(af.random.uniform(key, shape, *bounds), theirs)
    assert torch.equal(af.random.uniform(key, shape, *(b.expand(shape[-1:]).double() for b in bounds)), theirs)


def test_bounds_are_rounded_once():
    # Products halfway between two float32 numbers, and a bound too small for float64 to see beside them.
    u = (2 * torch.arange(3_000_000, 3_000_500) + 1) * 2.0**-23
    low = torch.tensor([-1e-30, 1e-30])[:, None]
    ours = distributions.affine(u, low, torch.tensor(3.0))

    def rounded(x):
        near = np.float32(float(x))
        neighbours = (near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(9)))
        return min(neighbours, key=lambda value: (abs(Fraction(float(value)) - x), int(value.view(np.int32)) & 1))

    exact = [[rounded(Fraction(v) * 3 + Fraction(b)) for v in u.tolist()] for b in low.flatten().tolist()]
    assert np.array_equal(ours.numpy(), np.array(exact))
    assert not torch.equal(ours, (u.double() * 3 + low.double()).float())


@pytest.mark.parametrize(
    ("key", "counter", "answer"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_random123_known_answers(key, counter, answer):
    def words(values):
        return torch.from_numpy(np.array(values, dtype=np.uint32).view(np.int32)).unbind()

    assert torch.equal(
        torch.stack(af.random.threefry2x32(*words(key), *words(counter))), torch.stack(list(words(answer)))
    )


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2**18 + 1,), (3, 2**17)])
def test_bits_of_any_shape_and_across_chunks(shape):
    assert torch.equal(af.random.bits(af.random.key(7), shape), as_tensor(jax.random.bits(jax.random.key(7), shape)))


def test_bounded_draws_across_chunks_equal_jax():
    key, shape = af.random.key(7), (2**18 + 1,)
    theirs = jax.random.uniform(raw(7), shape, minval=-0.1, maxval=0.3)
    assert torch.equal(af.random.uniform(key, shape, -0.1, 0.3), as_tensor(theirs))


def test_counters_past_32_bits_use_the_high_word():
    index = torch.tensor([2**32 - 1, 2**32, 3 * 2**32 + 7])
    high, low = threefry._words(index)
    words = np.array([0, 1, 3, 2**32 - 1, 0, 7], np.uint32)  # the high words, then the low ones
    theirs = as_tensor(jax.extend.random.threefry_2x32(np.array([5, 9], np.uint32), words))
    ours = af.random.threefry2x32(*torch.tensor([5, 9], dtype=torch.int32), high, low)
    assert torch.equal(torch.cat(ours), theirs)


@given(
    st.integers(0, 2**32 - 1), st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 1), st.integers(0, 99)
)
@settings(max_examples=60)
def test_randint_of_any_range_equals_jax(seed, minval, maxval, n):
    theirs = as_tensor(jax.random.randint(raw(seed), (n,), minval, maxval))
    key = af.random.key(seed)
    assert torch.equal(af.random.randint(key, (n,), minval, maxval), theirs)
    assert torch.equal(af.random.randint(key, n, torch.tensor(minval), torch.tensor([maxval])), theirs)


def test_randint_up_to_the_last_integer_equals_jax():
    theirs = as_tensor(jax.random.randint(raw(3), (1000,), -(2**31), np.uint32(2**31)))
    key = af.random.key(3)
    assert torch.equal(af.random.randint(key, 1000, -(2**31), 2**31), theirs)
    assert torch.equal(af.random.randint(key, 1000, -(2**31), torch.tensor(2**31, dtype=torch.uint32)), theirs)


def test_randint_clamps_tensors_as_jax_does():
    values = torch.tensor([-(2**40), -(2**31), -1, 0, 2**31 - 1, 2**31, 2**40])
    minval, maxval = values[:, None], values
    with jax.enable_x64(True):
        theirs = jax.random.randint(raw(3), (7, 7), minval.numpy(), maxval.numpy(), dtype="int32")
    assert torch.equal(af.random.randint(af.random.key(3), (7, 7), minval, maxval), as_tensor(theirs))


@pytest.mark.parametrize("n", [0, 1, 2, 1625, 1626])
def test_permutation_around_its_second_round(n):
    theirs = jax.random.permutation(np.array([0, 3], np.uint32), n)
    assert torch.equal(af.random.permutation(af.random.key(3), n), as_tensor(theirs))


@given(st.integers(0, 2**32 - 1), st.sampled_from([(5,), (0,), (3, 4), (2, 1, 5), (4, 0)]), st.data())
@settings(max_examples=30)
def test_permutations_and_choices_of_tensors_equal_jax(seed, shape, data):
    key, axis = af.random.key(seed), data.draw(st.integers(-len(shape), len(shape) - 1))
    x = torch.arange(math.prod(shape), dtype=torch.float32).view(shape)
    for independent in (False, True):
        theirs = jax.random.permutation(raw(seed), x.numpy(), axis, independent)
        assert torch.equal(af.random.permutation(key, x, axis, independent), as_tensor(theirs))
    n = shape[axis]
    if n:
        for replace, taken in ((True, (2, 3)), (False, (n,)), (False, (1, n - 1)), (True, ())):
            if math.prod(taken):
                theirs = jax.random.choice(raw(seed), x.numpy(), taken, replace, axis=axis)
                assert torch.equal(af.random.choice(key, x, taken, replace, axis=axis), as_tensor(theirs))


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 16, 17, 300, 700]), st.floats(0, 20), st.floats(0, 0.9))
@settings(max_examples=60)
def test_weighted_choices_equal_jax(seed, n, spread, zeros):
    generator = torch.Generator().manual_seed(seed)
    p = (torch.randn(n, generator=generator) * spread).exp() * (torch.rand(n, generator=generator) >= zeros)
    p[-1] += 1e-3
    theirs = jax.random.choice(raw(seed), n, (40,), p=p.numpy())
    assert torch.equal(af.random.choice(af.random.key(seed), n, (40,), p=p), as_tensor(theirs))


def test_weighted_choices_without_replacement():
    p, agree = torch.linspace(0, 1, 100), 0
    for seed in range(50):
        ours = af.random.choice(af.random.key(seed), 100, (9, 11), replace=False, p=p)
        assert len(set(ours.flatten().tolist())) == 99
        assert 0 not in ours
        agree += torch.equal(ours, as_tensor(jax.random.choice(raw(seed), 100, (9, 11), replace=False, p=p.numpy())))
    assert agree >= 49  # two scores within rounding of each other may change places


@pytest.mark.parametrize("n", [1, 15, 16, 17, 256, 257, 4096, 5000])
def test_running_sums_and_searches_are_jaxs(n):
    x = af.random.uniform(af.random.key(n), n)
    x[::3] = 0  # the sums fall by an ulp here and there, and the steps of the search decide
    sums = distributions.running_sums(x)
    assert torch.equal(sums, as_tensor(jnp.cumsum(x.numpy())))
    above, below = (sums.nextafter(torch.tensor(end)) for end in (torch.inf, 0.0))
    targets = torch.cat([sums, above.clamp(max=sums[-1]), below])
    targets = targets[targets > 1e-30]  # XLA takes subnormal numbers for zero
    theirs = jnp.searchsorted(jnp.asarray(sums.numpy()), targets.numpy())
    assert torch.equal(distributions.first_reaching(sums, targets), as_tensor(theirs))


@pytest.mark.parametrize(
    ("axis", "shape", "replace"),
    [
        (-1, None, True),
        (0, (4, 8), True),
        (1, (2, 3, 5), True),
        (1, (3, 5), False),
        (0, (4, 8), False),
        (-2, None, False),
    ],
)
def test_categorical_has_jaxs_axes(axis, shape, replace):
    logits, agree = LOGITS, 0
    for seed in range(20):
        theirs = jax.random.categorical(raw(seed), logits.numpy(), axis, shape, replace)
        ours = af.random.categorical(af.random.key(seed), logits, axis, shape, replace)
        assert ours.dtype == torch.int32
        assert ours.shape == theirs.shape
        agree += torch.equal(ours, as_tensor(theirs))
    assert agree >= 19


def test_categorical_broadcasts_and_draws_by_probability():
    logits = torch.tensor([[0.1, 0.2, 0.7]]).log()
    ours = af.random.categorical(af.random.key(0), logits, shape=(50_000, 2))
    theirs = jax.random.categorical(raw(0), logits.numpy(), shape=(50_000, 2))
    assert (ours == as_tensor(theirs)).float().mean() > 0.9999
    assert torch.allclose(ours.flatten().bincount() / 1e5, torch.tensor([0.1, 0.2, 0.7]), atol=0.005)


def test_normals_equal_jax_within_its_own_error_and_the_exact_ones_closely():
    shape = (1_000_000,)
    ours = af.random.normal(af.random.key(11), shape)
    theirs = as_tensor(jax.random.normal(np.array([0, 11], np.uint32), shape))
    assert (ours - theirs).abs().max() <= 3e-5
    u = as_tensor(jax.random.uniform(np.array([0, 11], np.uint32), shape, minval=LOWEST, maxval=1.0))
    exact = 2**0.5 * torch.erfinv(u.double())
    assert (ours.double() - exact).abs().max() <= 1e-6


def test_normals_at_the_ends_are_finite():
    ends = torch.tensor([0, -1], dtype=torch.int32)  # all bits clear, all bits set
    values = distributions.to_normal(ends)
    assert torch.isfinite(values).all()
    assert values.abs().max() <= 5.42


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(1, 9))
@settings(max_examples=30)
def test_a_split_row_is_a_fold_and_does_not_depend_on_num(seed, data, num):
    key = af.random.key(seed)
    rows = af.random.split(key, num)
    assert torch.equal(rows, af.random.split(key, num + 5)[:num])
    assert torch.equal(rows[-1], af.random.fold_in(key, num - 1))
    assert torch.equal(af.random.fold_in(key, data), af.random.fold_in(key, torch.tensor(data)))


@pytest.mark.parametrize("num", [0, (), (0, 3), (2, 0), [3, 2], (4,)])
def test_splits_of_any_shape_equal_jax(num):
    assert torch.equal(af.random.split(KEYS[1], num), as_tensor(jax.random.split(KEY_DATA[1], num)))


def test_bernoulli_takes_a_tensor_of_probabilities():
    key, p = af.random.key(1), torch.linspace(0, 1, 1000)
    for shape in ((1000,), None, (3, 1000)):
        theirs = jax.random.bernoulli(np.array([0, 1], np.uint32), p.numpy(), shape)
        assert torch.equal(af.random.bernoulli(key, p, shape), as_tensor(theirs))
        assert torch.equal(af.random.bernoulli(key, p.double() + 1e-12, shape), as_tensor(theirs))


def test_uniform_segments_are_uniforms_of_folded_keys():
    keys, sizes = af.random.split(af.random.key(5), 4), [1000, 1, 70_000]
    joined = continuous.uniform_segments(keys, sizes)
    for key, row in zip(keys, joined, strict=True):
        parts = [af.random.uniform(af.random.fold_in(key, i), (size,)) for i, size in enumerate(sizes)]
        assert torch.equal(row, torch.cat(parts))


BOUNDED = {
    "uniform": lambda key, low, high: af.random.uniform(key, (4, 3), low, high),
    "truncated_normal": lambda key, low, high: af.random.truncated_normal(key, low, high, (4, 3)),
}


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("bounds", [(-1.0, 0.5), (1.5, 2.0), (-4.0, -3.0)])
def test_draws_differentiate_by_their_bounds(name, bounds):
    key, low, high = af.random.key(4), torch.full((3,), bounds[0]), torch.tensor(bounds[1])
    u = af.random.uniform(key, (4, 3)).double()
    to_low, to_high = 1 - u, u
    if name == "truncated_normal":
        x = BOUNDED[name](key, low, high).double()
        to_low, to_high = (
            to * ((x.square() - b**2) / 2).exp() for to, b in zip((to_low, to_high), bounds, strict=True)
        )

    def total(low, high, key=key):
        return BOUNDED[name](key, low, high).sum()

    for _ in ("with vmap", "without"):
        by_low, by_high = grad(total, (0, 1))(low, high)
        torch.testing.assert_close(by_low, to_low.sum(0).float())
        torch.testing.assert_close(by_high, to_high.sum().float())
    _, tangent = jvp(lambda low, high: BOUNDED[name](key, low, high), (low, high), (torch.ones(3), torch.ones(())))
    torch.testing.assert_close(tangent, (to_low + to_high).float())
    mapped = vmap(grad(lambda key, low, high: total(low, high, key), 1), (0, None, None))(KEYS, low, high)
    torch.testing.assert_close(mapped[4], to_low.sum(0).float())
    by_members = vmap(grad(total), (0, None))(torch.stack([low, low]), high)
    torch.testing.assert_close(by_members, torch.stack([by_low, by_low]))
    assert torch.isfinite(grad(lambda low: grad(total)(low, high).sum())(low)).all()


@pytest.mark.parametrize(
    "bounds", [(-1.0, 1.0), (-math.inf, 0.5), (-math.inf, -3.0), (9.0, 10.0), (40.0, 41.0), (0.0, math.inf)]
)
def test_truncated_normals_have_finite_derivatives(bounds):
    low, high = map(torch.tensor, bounds)
    derivatives = grad(lambda low, high: distributions.truncate(UNIFORMS[:9], low, high).sum(), (0, 1))(low, high)
    assert all(torch.isfinite(d) for d in derivatives)
    _, tangent = jvp(lambda high: distributions.truncate(UNIFORMS, low, high), (high,), (torch.tensor(1.0),))
    assert torch.isfinite(tangent).all()


def test_uniform_of_equal_bounds_differentiates():
    key, five = af.random.key(0), torch.tensor(5.0)
    u = af.random.uniform(key, (9,))
    assert torch.equal(af.random.uniform(key, (9,), five, five), five.expand(9))
    by_low, by_high = grad(lambda low, high: af.random.uniform(key, (9,), low, high).sum(), (0, 1))(five, five)
    torch.testing.assert_close((by_low, by_high), ((1 - u).sum(), u.sum()))
    falling = grad(lambda low, high: af.random.uniform(key, (9,), low, high).sum(), (0, 1))(five, five - 1)
    torch.testing.assert_close(falling, (torch.tensor(9.0), torch.tensor(0.0)))


def test_permuted_and_chosen_tensors_differentiate():
    key, x = af.random.key(0), torch.arange(12.0).view(4, 3)
    for draw in (
        lambda x: af.random.permutation(key, x),
        lambda x: af.random.permutation(key, x, 1, independent=True),
        lambda x: af.random.choice(key, x, (2, 2)),
    ):
        values, tangent = jvp(draw, (x,), (x + 1,))
        assert torch.equal(tangent, values + 1)
        counts = grad(lambda x, draw=draw: draw(x).sum())(x)
        assert torch.equal(counts.flatten(), draw(x).long().flatten().bincount(minlength=12).float())


def every_draw(key):
    r, low, high = af.random, torch.zeros(3, device=key.device), torch.ones(3, device=key.device)
    return {
        "uniform": r.uniform(key, (2, 3), low, high),
        "truncated_normal": r.truncated_normal(key, low, high),
        "randint": r.randint(key, 3, low.int(), high.int()),
        "permutation": r.permutation(key, low),
        "choice": r.choice(key, low, (2,), p=high),
        "choice without": r.choice(key, low, (2,), replace=False, p=high),
        "categorical": r.categorical(key, low),
        "key": r.key(key[0]),
        "clone": r.clone(r.wrap_key_data(r.key_data(key))),
        **{f.__name__: f(key, 4) for f in (r.bits, r.normal, r.exponential, r.gumbel)},
    }


def test_no_draw_looks_at_values():
    # A meta tensor has none: what synchronised a GPU would raise here.
    real, shapes = every_draw(KEYS[0]), every_draw(KEYS[0].to("meta"))
    for name, value in real.items():
        assert (shapes[name].shape, shapes[name].dtype) == (value.shape, value.dtype), name


def test_the_global_generator_is_neither_read_nor_moved():
    before = torch.get_rng_state()
    every_draw(KEYS[0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.errors
def test_numpy_integers_are_integers():
    assert torch.equal(af.random.key(np.int64(3)), af.random.key(3))
    assert torch.equal(af.random.key(np.array(3)), af.random.key(3))
    assert torch.equal(af.random.split(KEYS[0], np.int64(3)), af.random.split(KEYS[0], 3))
    assert af.random.normal(KEYS[0], np.int64(3)).shape == (3,)
    assert af.random.normal(KEYS[0], np.array([2, 3])).shape == (2, 3)
    assert torch.equal(
        af.random.uniform(KEYS[0], 3, np.float32(1), np.int64(2)), af.random.uniform(KEYS[0], 3, 1.0, 2.0)
    )


def _meta(*shape):
    return torch.zeros(shape, device="meta")


@pytest.mark.errors
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r, k: r.key("0"), TypeError, "seed must be an int, got str"),
        (lambda r, k: r.key(torch.tensor(0.5)), TypeError, r"seed must be one integer, got torch\.float32 \[\]"),
        (
            lambda r, k: r.key(torch.zeros(2)),
            TypeError,
            r"key data must be uint32 or int32 of shape \[\.\.\., 2\], got torch\.float32 \[2\]",
        ),
        (lambda r, k: r.key(torch.arange(2)), TypeError, r"got torch\.int64 \[2\]"),
        (lambda r, k: r.key(np.zeros(3, np.uint32)), ValueError, r"key data must be .* got torch\.uint32 \[3\]"),
        (
            lambda r, k: r.key(jax.random.split(jax.random.key(0))),
            ValueError,
            r"key must have shape \[2\], got \[2, 2\]",
        ),
        (
            lambda r, k: r.key(jax.random.key(0, impl="rbg")),
            ValueError,
            "must be of JAX's threefry2x32, got a key of rbg",
        ),
        (lambda r, k: r.wrap_key_data([0, 5]), TypeError, "key data must be a tensor, an array or a JAX key, got list"),
        (lambda r, k: r.wrap_key_data(np.zeros(2)), TypeError, r"got float64 \[2\]"),
        (
            lambda r, k: r.key_data(torch.zeros(3, dtype=torch.int32)),
            ValueError,
            r"keys must be int32 of shape \[\.\.\., 2\], got torch\.int32 \[3\]",
        ),
        (lambda r, k: r.clone(5), TypeError, "keys must be int32 .* got int"),
        (lambda r, k: r.split(k, 2.0), TypeError, r"num must be an int or a sequence of ints, got 2\.0"),
        (lambda r, k: r.split(k, (2, -1)), ValueError, r"num must not be negative, got \(2, -1\)"),
        (lambda r, k: r.bits(k, (2.0,)), TypeError, r"shape must be an int or a sequence of ints, got \(2\.0,\)"),
        (
            lambda r, k: r.normal(k, torch.tensor([2])),
            TypeError,
            "shape must be an int or a sequence of ints, got tensor",
        ),
        (lambda r, k: r.gumbel(k, -2), ValueError, "shape must not be negative, got -2"),
        (
            lambda r, k: r.uniform(k, (3,), torch.float32),
            TypeError,
            "minval must be a number or a real tensor, got dtype",
        ),
        (lambda r, k: r.uniform(k, (3,), 0, torch.tensor(True)), TypeError, r"maxval must be .* got torch\.bool \[\]"),
        (
            lambda r, k: r.uniform(k, (3,), 0, torch.zeros(2)),
            ValueError,
            r"maxval of shape \[2\] does not broadcast to shape \[3\]",
        ),
        (
            lambda r, k: r.uniform(k, (1,), torch.zeros(3)),
            ValueError,
            r"minval of shape \[3\] does not broadcast to shape \[1\]",
        ),
        (lambda r, k: r.uniform(k, (3,), _meta(3)), ValueError, "minval is on meta but key is on cpu"),
        (lambda r, k: r.truncated_normal(k, 1, 1, 3), ValueError, "lower must lie below upper, got 1 and 1"),
        (lambda r, k: r.truncated_normal(k, math.nan, 1), ValueError, "lower must lie below upper, got nan and 1"),
        (
            lambda r, k: r.truncated_normal(k, torch.tensor(2.0), 1),
            ValueError,
            r"lower must lie below upper, got 2\.0 and 1",
        ),
        (lambda r, k: r.bernoulli(k, "0.5"), TypeError, "p must be a number or a real tensor, got str"),
        (lambda r, k: r.randint(k, 3, 0.5, 2), TypeError, "minval must be an integer or an integer tensor, got float"),
        (lambda r, k: r.randint(k, 3, 0, torch.ones(3)), TypeError, r"maxval must be .* got torch\.float32 \[3\]"),
        (
            lambda r, k: r.randint(k, 3, 0, 2**31 + 1),
            ValueError,
            r"maxval must lie in -2147483648\.\.2147483648, got 2147483649",
        ),
        (lambda r, k: r.randint(k, 3, 0, torch.arange(2)), ValueError, r"maxval of shape \[2\] does not broadcast"),
        (lambda r, k: r.permutation(k, -1), ValueError, "x must not be negative, got -1"),
        (lambda r, k: r.permutation(k, 1.5), TypeError, "x must be an integer or a tensor, got float"),
        (lambda r, k: r.permutation(k, torch.tensor(5)), TypeError, r"x must have an axis, got torch\.int64 \[\]"),
        (
            lambda r, k: r.permutation(k, torch.zeros(2, 3), 2),
            ValueError,
            r"axis must lie in -2\.\.1 for x \[2, 3\], got 2",
        ),
        (lambda r, k: r.permutation(k, 5, 1), ValueError, "axis must be 0 where x is an integer, got 1"),
        (lambda r, k: r.permutation(k, _meta(3)), ValueError, "x is on meta but key is on cpu"),
        (lambda r, k: r.choice(k, 0), ValueError, "a must hold enough for 1 draws with replacement, got 0 elements"),
        (
            lambda r, k: r.choice(k, 3, (2, 2), False),
            ValueError,
            "a must hold enough for 4 draws without replacement, got 3",
        ),
        (
            lambda r, k: r.choice(k, 3, p=torch.ones(2)),
            ValueError,
            r"p must have shape \[3\], one weight an element, got \[2\]",
        ),
        (lambda r, k: r.choice(k, 3, p=[1.0, 0.0, 0.0]), TypeError, "p must be a real tensor, got list"),
        (lambda r, k: r.choice(k, 2, p=torch.tensor([1.0, -1.0])), ValueError, r"not negative, got -1\.0 to 1\.0"),
        (lambda r, k: r.choice(k, 2, p=torch.tensor([1.0, math.nan])), ValueError, "p must hold finite weights"),
        (lambda r, k: r.choice(k, 2, p=torch.zeros(2)), ValueError, "p must hold at least 1 positive weights, got 0"),
        (lambda r, k: r.choice(k, 3, 2, False, torch.eye(3)[0]), ValueError, "at least 2 positive weights, got 1"),
        (
            lambda r, k: r.categorical(k, torch.zeros(3).int()),
            TypeError,
            r"logits must be a floating tensor, got torch\.int32 \[3\]",
        ),
        (lambda r, k: r.categorical(k, torch.tensor(1.0)), TypeError, "logits must have an axis"),
        (lambda r, k: r.categorical(k, torch.zeros(3, 0)), ValueError, "logits must not be empty along axis 1"),
        (
            lambda r, k: r.categorical(k, torch.zeros(2, 3), shape=(3,)),
            ValueError,
            r"shape must end in \[2\], the logits' other axes, got \[3\]",
        ),
        (
            lambda r, k: r.categorical(k, torch.zeros(1, 3), shape=(2,), replace=False),
            ValueError,
            r"shape must end in \[1\]",
        ),
        (
            lambda r, k: r.categorical(k, torch.zeros(3), shape=4, replace=False),
            ValueError,
            "4 different indices, and there are 3",
        ),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(af.random, KEYS[0])


def test_bits_functionalize():
    key = af.random.key(3)
    assert torch.equal(torch.func.functionalize(lambda k: af.random.bits(k, (5,)))(key), af.random.bits(key, (5,)))


@pytest.mark.gpu
def test_cuda_gives_the_same_bits(expected):
    ours = vmap(lambda key: draws(af.random, key))(KEYS.cuda())
    assert_equal_dicts({name: value.cpu() for name, value in ours.items()}, expected)


@pytest.mark.gpu
def test_cuda_gives_real_draws_as_close():
    for i, key in enumerate(KEYS.cuda()):
        assert_close_draws({name: value.cpu() for name, value in real_draws(af.random, key).items()}, KEY_DATA[i])
