"""Keys against jax.random, bit for bit, and against the published known answers."""

import jax
import jax.extend.random
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import vmap

import alexnet_func as af
from parity.draws import as_tensor, draws

SEEDS = (*range(62), 2**31, 2**32 - 1)
KEYS = torch.stack([af.random.key(seed) for seed in SEEDS])
KEY_DATA = np.array([[0, seed] for seed in SEEDS], dtype=np.uint32)


@pytest.fixture(scope="module")
def expected():
    theirs = jax.jit(jax.vmap(lambda key: draws(jax.random, key)))(KEY_DATA)
    return {name: as_tensor(value) for name, value in theirs.items()}


def assert_equal_dicts(ours, expected):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert ours[name].dtype == value.dtype, name
        assert torch.equal(ours[name], value), name


def test_a_key_is_jaxs_key_data():
    for seed in SEEDS:
        assert torch.equal(af.random.key(seed), as_tensor(jax.random.key_data(jax.random.key(np.uint32(seed)))))


def test_eager_draws_equal_jax(expected):
    ours = [draws(af.random, key) for key in KEYS]
    assert_equal_dicts({name: torch.stack([d[name] for d in ours]) for name in ours[0]}, expected)


def test_vmapped_draws_equal_jax(expected):
    assert_equal_dicts(vmap(lambda key: draws(af.random, key))(KEYS), expected)


@pytest.mark.compiled
def test_compiled_draws_equal_jax(expected):
    # One key at a time: the graph is built once and serves all 64.
    options = af.train.compile_options()
    compiled = torch.compile(lambda key: draws(af.random, key), fullgraph=True, dynamic=False, options=options)
    ours = [compiled(key) for key in KEYS]
    assert_equal_dicts({name: torch.stack([d[name] for d in ours]) for name in ours[0]}, expected)


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


def test_counters_past_32_bits_use_the_high_word():
    index = torch.tensor([2**32 - 1, 2**32, 3 * 2**32 + 7])
    high, low = af.random._words(index)
    words = np.array([0, 1, 3, 2**32 - 1, 0, 7], np.uint32)  # the high words, then the low ones
    theirs = as_tensor(jax.extend.random.threefry_2x32(np.array([5, 9], np.uint32), words))
    ours = af.random.threefry2x32(*torch.tensor([5, 9], dtype=torch.int32), high, low)
    assert torch.equal(torch.cat(ours), theirs)


@given(st.integers(0, 2**32 - 1), st.integers(-(2**31), 2**31 - 2), st.integers(1, 2**32 - 1), st.integers(0, 200))
@settings(max_examples=60, deadline=None)
def test_randint_of_any_range_equals_jax(seed, minval, span, n):
    maxval = min(minval + span, 2**31 - 1)
    theirs = jax.random.randint(np.array([0, seed], np.uint32), (n,), minval, maxval)
    assert torch.equal(af.random.randint(af.random.key(seed), (n,), minval, maxval), as_tensor(theirs))


@pytest.mark.parametrize("n", [0, 1, 2, 1625, 1626])
def test_permutation_around_its_second_round(n):
    theirs = jax.random.permutation(np.array([0, 3], np.uint32), n)
    assert torch.equal(af.random.permutation(af.random.key(3), n), as_tensor(theirs))


def test_normals_equal_jax_within_its_own_error_and_the_exact_ones_closely():
    shape = (1_000_000,)
    ours = af.random.normal(af.random.key(11), shape)
    theirs = as_tensor(jax.random.normal(np.array([0, 11], np.uint32), shape))
    assert (ours - theirs).abs().max() <= 3e-5
    lowest = np.nextafter(np.float32(-1), np.float32(0))
    u = as_tensor(jax.random.uniform(np.array([0, 11], np.uint32), shape, minval=lowest, maxval=1.0))
    exact = 2**0.5 * torch.erfinv(u.double())
    assert (ours.double() - exact).abs().max() <= 1e-6


def test_normals_at_the_ends_are_finite():
    ends = torch.tensor([0, -1], dtype=torch.int32)  # all bits clear, all bits set
    values = af.random._to_normal(ends)
    assert torch.isfinite(values).all()
    assert values.abs().max() <= 5.42


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_a_split_row_is_a_fold_and_does_not_depend_on_num(seed, data, num):
    key = af.random.key(seed)
    rows = af.random.split(key, num)
    assert torch.equal(rows, af.random.split(key, num + 5)[:num])
    assert torch.equal(rows[-1], af.random.fold_in(key, num - 1))
    assert torch.equal(af.random.fold_in(key, data), af.random.fold_in(key, torch.tensor(data)))


def test_bernoulli_takes_a_tensor_of_probabilities():
    key, p = af.random.key(1), torch.linspace(0, 1, 1000)
    for shape in ((1000,), None, (3, 1000)):
        theirs = jax.random.bernoulli(np.array([0, 1], np.uint32), p.numpy(), shape)
        assert torch.equal(af.random.bernoulli(key, p, shape), as_tensor(theirs))


def test_uniform_segments_are_uniforms_of_folded_keys():
    keys, sizes = af.random.split(af.random.key(5), 4), [1000, 1, 70_000]
    joined = af.random.uniform_segments(keys, sizes)
    for key, row in zip(keys, joined, strict=True):
        parts = [af.random.uniform(af.random.fold_in(key, i), (size,)) for i, size in enumerate(sizes)]
        assert torch.equal(row, torch.cat(parts))


def test_the_global_generator_is_neither_read_nor_moved():
    before = torch.get_rng_state()
    af.random.permutation(af.random.key(0), 100)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.errors
def test_numpy_integers_are_integers():
    assert torch.equal(af.random.key(np.int64(3)), af.random.key(3))


def test_bits_functionalize():
    key = af.random.key(3)
    assert torch.equal(torch.func.functionalize(lambda k: af.random.bits(k, (5,)))(key), af.random.bits(key, (5,)))


@pytest.mark.gpu
def test_cuda_gives_the_same_bits(expected):
    ours = vmap(lambda key: draws(af.random, key))(KEYS.cuda())
    assert_equal_dicts({name: value.cpu() for name, value in ours.items()}, expected)
