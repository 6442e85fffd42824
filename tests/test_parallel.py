import functools
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch._inductor.utils import run_and_get_code
from torch.func import vmap
from torch.utils._python_dispatch import TorchDispatchMode

import alexnet_func as af
from alexnet_func import ensemble, optim, parallel, random, train
from alexnet_func.data import augment
from tests.conftest import TINY, images, tiny_forward, tiny_loss

STEPS, BATCH = 20, 8


def augmented(key, index, x):
    def one(key, image):
        return augment.normalize(augment.to_float(augment.random_flip(key, image)), (0.5,) * 3, (0.3,) * 3)

    return vmap(one)(vmap(random.fold_in, in_dims=(None, 0))(key, index), x)


def trained(dtype, *, loss_fn=tiny_loss, reduction=None, compiled=False):
    """The state after some steps with dropout and augmentation by global index, whatever the number of ranks."""
    key, generator = random.key(5), torch.Generator().manual_seed(0)
    x, y = torch.randint(256, (24, 3, 15, 15), generator=generator, dtype=torch.uint8), torch.arange(24) % 5
    optimizer = optim.sgd(0.05, momentum=0.9, weight_decay=5e-4)
    step = train.make_step(None, optimizer, grad_fn=parallel.grad_fn(loss_fn, reduction=reduction))
    step = train.compile_step(step, donate=True) if compiled else step
    state = train.create_state(af.init(key, TINY, dtype=dtype), optimizer, key=key)
    losses = []
    for i in range(STEPS):
        index = parallel.share(random.permutation(random.fold_in(key, i), len(y))[:BATCH].long())
        state, metrics = step(state, (augmented(key, index, x[index]), y[index]))
        losses.append(metrics["loss"].item())
    return {"params": state.params, "losses": losses}


def without_dropout(params, batch, *, key=None):
    return tiny_loss(params, batch)


def measured():
    params = af.init(random.key(5), TINY, dtype=torch.float64)
    x, y = images(TINY, 11, torch.float64)
    part = torch.arange(11).tensor_split(parallel.world_size())[parallel.rank()]
    return parallel.evaluate(tiny_forward, params, [(x[part], y[part])])


def private():
    """A step of private training on this rank's share of a sample, one of whose examples is not finite."""
    key = random.key(5)
    params = af.init(key, TINY, dtype=torch.float64)
    x, y = images(TINY, 8, torch.float64)
    x[5] = torch.nan
    weights = torch.tensor([1.0, 1, 1, 0, 1, 1, 1, 1])
    own = parallel.share(torch.arange(8))
    batch = (x[own], y[own], weights[own])
    optimizer, step = af.privacy.adaptive(optim.sgd(0.1), 1.0, 6.0, arch=TINY, max_norm=0.5, count_deviation=0.6)
    state, _ = step(train.create_state(params, optimizer, key=key), batch)
    return *af.privacy.dp_grad_fn(0.5, 1.3, 6.0, arch=TINY)(params, batch, key), state


def unequal():
    """The gradient of 7 examples with dropout, of which some ranks have one more than others."""
    key, (x, y) = random.key(5), images(TINY, 7, torch.float64)
    own = torch.arange(7).tensor_split(parallel.world_size())[parallel.rank()]
    return parallel.grad_fn(tiny_loss)(af.init(key, TINY, dtype=torch.float64), (x[own], y[own]), key)


def members():
    """Losses by step of this rank's members of an ensemble of four, and the probabilities of all four's average."""
    key, (x, y) = random.key(5), images(TINY, 6, torch.float64)
    own = parallel.share(torch.arange(4))
    each, optimizer = ensemble.grad_fn(tiny_loss), optim.sgd(0.05, momentum=0.9)
    step = train.make_step(None, optimizer, grad_fn=lambda p, batch, key: each(p, batch, random.split(key, 4)[own]))
    params = ensemble.init(random.split(key, 4)[own], TINY, dtype=torch.float64)
    state = train.create_state(params, optimizer, key=key)
    losses = []
    for _ in range(3):
        state, metrics = step(state, (x, y))
        losses.append(metrics["losses"])
    p = ensemble.average(state.params, x, arch=TINY).exp()
    return torch.stack(losses), parallel.summed([p])[0] / parallel.world_size()


def told():
    """What rank 0 says, whatever this rank has, and in which order."""
    own = {"a": torch.full((2,), float(parallel.rank() + 3)), "b": torch.full((2,), 9.0), "name": "kept"}
    return parallel.broadcast(dict(sorted(own.items(), reverse=parallel.rank() > 0)))


def left_out():
    """Gradients of a loss that rank 1 has nothing to do with, and the last one with `b` alone; and the expected."""
    rank, ranks = parallel.rank(), parallel.world_size()
    uses = ["abc", "", *["ac"] * (ranks - 3), "b"][:ranks]
    x = torch.arange(1.0, 2 * ranks + 1, dtype=torch.float64)
    own = x[2 * rank : 2 * rank + 2]

    def loss(params, batch, *, key):
        return batch[0].mean() * (1 + sum(params[name].sum() for name in uses[rank]))

    params = {name: torch.ones(2, dtype=torch.float64) for name in "abcd"}
    grads, _ = parallel.grad_fn(loss)(params, (own, own.long()), random.key(0))
    sums = {name: [x[2 * r : 2 * r + 2].sum() for r in range(ranks) if name in uses[r]] for name in params}
    return grads, {name: sum(each, torch.tensor(0.0)) / len(x) for name, each in sums.items()}


def sums():
    """Of dtypes that have no common one without a loss."""
    return parallel.summed([torch.tensor(2**24 + 1), torch.tensor([0.5]), torch.tensor(2)]), parallel.summed([])


def in_one_process(rank, world, jobs, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}/meeting", rank=rank, world_size=world)
    try:
        results = [job() for job in jobs]
        if rank == world - 1:
            torch.save(results, path / "results.pt")
        dist.barrier()  # a rank that leaves early takes the others' connections with it
    finally:
        dist.destroy_process_group()


def on_ranks(world, path, *jobs):
    """Each job's result on the last of so many gloo processes."""
    path = path / str(world)
    path.mkdir()
    multiprocessing.start_processes(in_one_process, (world, jobs, path), world, start_method="spawn")
    return torch.load(path / "results.pt", weights_only=False)


def relative_distance(a, b):
    difference = sum((a[name] - b[name]).double().square().sum() for name in a)
    return (difference / sum(value.double().square().sum() for value in b.values())).sqrt().item()


@pytest.fixture(scope="module")
def alone():
    return trained(torch.float64)


@pytest.fixture(scope="module", params=[2, 4])
def together(request, tmp_path_factory):
    jobs = [functools.partial(trained, dtype) for dtype in (torch.float64, torch.float32)]
    jobs += [functools.partial(trained, torch.float64, reduction="bf16"), measured, told, private, unequal]
    jobs += [members, left_out, sums]
    return on_ranks(request.param, tmp_path_factory.mktemp("ranks"), *jobs)


def test_without_a_group_there_is_one_rank_and_the_plain_gradient():
    assert (parallel.rank(), parallel.world_size()) == (0, 1)
    params, key = af.init(random.key(1), TINY, dtype=torch.float64), random.key(2)
    batch = images(TINY, 3, torch.float64)
    grads, metrics = parallel.grad_fn(tiny_loss)(params, batch, key)
    expected, loss = torch.func.grad_and_value(lambda p: tiny_loss(p, batch, key=key))(params)
    assert relative_distance(grads, expected) < 1e-14
    torch.testing.assert_close(metrics["loss"], loss, rtol=1e-14, atol=0)
    assert torch.equal(parallel.share(torch.arange(5)), torch.arange(5))
    assert parallel.broadcast({"a": 1}) == {"a": 1}


def test_ranks_train_to_the_parameters_of_one_in_float64(alone, together):
    assert relative_distance(together[0]["params"], alone["params"]) <= 1e-12
    torch.testing.assert_close(together[0]["losses"], alone["losses"], rtol=1e-12, atol=0)


def test_in_float32_they_stay_within_the_budget_of_one(alone, together):
    single = relative_distance(trained(torch.float32)["params"], alone["params"])
    assert relative_distance(together[1]["params"], alone["params"]) <= 2 * single + 2**-24


def test_a_reduction_in_bfloat16_rounds_the_gradients_alone(alone, together):
    assert 1e-6 < relative_distance(together[2]["params"], alone["params"]) < 2e-2
    torch.testing.assert_close(together[2]["losses"][0], alone["losses"][0], rtol=1e-12, atol=0)


def test_evaluation_counts_every_ranks_examples(together):
    assert together[3].count == 11
    assert list(together[3]) == pytest.approx(list(measured()), rel=1e-7)  # accuracies are float32 means


def test_private_sums_are_of_all_ranks_and_noise_is_added_once(together):
    (grads, metrics, state), (expected, others, alone) = together[5], private()
    for name, g in expected.items():
        torch.testing.assert_close(grads[name], g, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(state.params[name], alone.params[name], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(state.opt_state["max_norm"], alone.opt_state["max_norm"])
    torch.testing.assert_close(metrics, others, rtol=1e-6, atol=0, check_dtype=False)
    assert (metrics["count"], metrics["nonfinite"]) == (7, 1)


def test_shares_of_different_sizes_have_the_keys_and_the_mean_of_one_rank(together):
    (grads, metrics), (expected, alone) = together[6], unequal()
    assert relative_distance(grads, expected) < 1e-13
    torch.testing.assert_close(metrics["loss"], alone["loss"], rtol=1e-13, atol=0)


def test_members_of_an_ensemble_shared_among_ranks_are_those_of_one(together):
    (losses, p), (expected, alone) = together[7], members()
    torch.testing.assert_close(losses, expected[:, -losses.shape[1] :], rtol=1e-12, atol=0)
    torch.testing.assert_close(p, alone, rtol=1e-12, atol=0)


THREADS_LEFT = """
import os, sys
import torch.distributed as dist
from alexnet_func import parallel
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
import torch
torch.func.grad(torch.sum)(torch.ones(2))
dist.all_reduce(torch.ones(2))
tasks = "/proc/self/task"
running = lambda: [name for name in (open(f"{tasks}/{t}/comm").read() for t in os.listdir(tasks)) if "gloo" in name]
assert running()
dist.destroy_process_group()
print(len(running()))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are listed by Linux")
def test_a_destroyed_group_leaves_no_thread(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", THREADS_LEFT, str(tmp_path / "meeting")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "0\n"


def test_ranks_that_leave_parameters_out_sum_those_of_the_others(together):
    grads, expected = together[8]
    for name, g in grads.items():
        torch.testing.assert_close(g, expected[name].double().expand(2))


def test_sums_keep_their_dtypes(together):
    (large, half, small), nothing = together[9]
    ranks = int(small) // 2
    assert ranks in (2, 4)
    assert (large.dtype, int(large)) == (torch.int64, ranks * (2**24 + 1))
    assert (half.dtype, half.tolist(), small.dtype, nothing) == (torch.float32, [ranks / 2], torch.int64, [])


def test_truth_values_have_no_sum():
    with pytest.raises(TypeError, match="truth values have no sum"):
        parallel.summed([torch.ones(2), torch.tensor(True)])


def test_a_broadcast_brings_rank_zeros_tensors(together):
    assert together[4]["a"].tolist() == [3.0, 3.0]
    assert together[4]["b"].tolist() == [9.0, 9.0]
    assert together[4]["name"] == "kept"


@pytest.mark.parametrize("world", [8, 64])
def test_many_simulated_ranks_share_one_gradient(world):
    threaded = pytest.importorskip("torch.testing._internal.distributed.multi_threaded_pg")
    if not hasattr(threaded.ThreadLocalWorld, "comms"):
        pytest.skip("the simulated ranks of torch 2.11 cannot be ended")
    params, key = af.init(random.key(1), TINY, dtype=torch.float64), random.key(2)
    x, y = images(TINY, 64, torch.float64)
    found = {}

    def gradient(rank):
        part = parallel.share(torch.arange(64))
        grads, metrics = parallel.grad_fn(tiny_loss)(params, (x[part], y[part]), key)
        found[rank] = grads, metrics["loss"]

    run_on_threads(threaded, world, gradient)
    expected, loss = torch.func.grad_and_value(lambda p: tiny_loss(p, (x, y), key=key))(params)
    assert sorted(found) == list(range(world))
    for grads, ranks_loss in found.values():
        assert relative_distance(grads, expected) < 1e-13
        torch.testing.assert_close(ranks_loss, loss, rtol=1e-13, atol=0)


def run_on_threads(threaded, world, job):
    def one(rank, store):
        dist.init_process_group("threaded", rank=rank, world_size=world, store=store)
        try:
            job(rank)
        finally:
            dist.destroy_process_group()

    threaded._install_threaded_pg()
    torch._C._distributed_c10d._set_thread_isolation_mode(True)
    try:
        with ThreadPoolExecutor(world) as pool:
            list(pool.map(one, range(world), [dist.HashStore()] * world))
    finally:
        torch._C._distributed_c10d._set_thread_isolation_mode(False)
        threaded._uninstall_threaded_pg()


@pytest.mark.compiled
@pytest.mark.usefixtures("two_that_send_nothing")
def test_a_compiled_step_of_two_ranks_is_one_graph_with_a_sum_of_counts_and_one_of_gradients():
    graphs = []

    def counted(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes if "all_reduce" in str(node.target)])
        return graph

    optimizer = optim.sgd(0.05, momentum=0.9)
    step = train.make_step(None, optimizer, grad_fn=parallel.grad_fn(tiny_loss))
    state = train.create_state(af.init(random.key(1), TINY), optimizer, key=random.key(2))
    with torch.no_grad():
        torch.compile(step, fullgraph=True, backend=counted)(state, images(TINY, 4))
    assert [len(calls) for calls in graphs] == [2]


@pytest.mark.compiled
@pytest.mark.usefixtures("two_that_send_nothing")
def test_sums_of_linear_layers_start_before_the_convolutions_backward_and_nothing_waits_before_all_have(monkeypatch):
    monkeypatch.setattr(parallel, "_LARGE", 300)  # bytes: all weights of TINY, and no bias
    optimizer = optim.sgd(0.05, momentum=0.9)
    step = train.make_step(None, optimizer, grad_fn=parallel.grad_fn(without_dropout))
    state = train.create_state(af.init(random.key(1), TINY), optimizer, key=random.key(2))
    _, (code,) = run_and_get_code(train.compile_step(step, donate=True), state, images(TINY, 4))
    calls = re.findall(r"ops\.\w+\.(all_reduce_|wait_tensor|convolution_backward)\.default", code)
    assert calls[:2] == ["all_reduce_", "wait_tensor"]  # of how many examples each rank has, for their keys
    calls = calls[2:]
    weights = [name for name in state.params if name.endswith("weight")]
    linear = sum(name.startswith("classifier") for name in weights)
    assert calls.count("all_reduce_") == calls.count("wait_tensor") == len(weights) + 1
    assert calls[:linear] == ["all_reduce_"] * linear
    assert calls.index("wait_tensor") == len(calls) - len(weights) - 1


@pytest.mark.compiled
def test_a_compiled_donated_step_of_two_ranks_stays_within_the_budget(tmp_path):
    job = functools.partial(trained, torch.float32, loss_fn=without_dropout)  # whose cipher takes long to compile
    (compiled,) = on_ranks(2, tmp_path, functools.partial(job, compiled=True))
    exact = trained(torch.float64, loss_fn=without_dropout)["params"]
    assert relative_distance(compiled["params"], exact) <= 2 * relative_distance(job()["params"], exact) + 2**-24


@pytest.mark.errors
def test_a_batch_that_does_not_divide_and_an_unknown_reduction_are_refused(monkeypatch):
    monkeypatch.setattr(parallel, "world_size", lambda: 3)
    with pytest.raises(ValueError, match="a batch of 8 does not divide among 3 ranks"):
        parallel.share(torch.arange(8))
    with pytest.raises(ValueError, match="reduction must be"):
        parallel.grad_fn(tiny_loss, reduction="int8")


class Order(TorchDispatchMode):
    """What of an eager step starts when: backward passes of convolutions, and sums, by how many numbers they have."""

    def __init__(self):
        super().__init__()
        self.found = []

    def begun(self, flat, async_op=False):
        self.found.append(flat.numel())
        return Finished()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution_backward.default:
            self.found.append("convolution")
        return function(*args, **(kwargs or {}))


class Finished:
    def wait(self):
        pass


@pytest.mark.usefixtures("two_that_send_nothing")
def test_an_eager_step_starts_the_sums_of_linear_layers_before_the_convolutions_backward(monkeypatch):
    params = af.init(random.key(1), TINY)
    with Order() as order:
        monkeypatch.setattr(dist, "all_reduce", order.begun)
        parallel.grad_fn(without_dropout)(params, images(TINY, 4), random.key(2))
    linear = [p.numel() for name, p in params.items() if name.startswith("classifier")]
    assert order.found[0] == 2  # of how many examples each rank has
    assert sorted(order.found[1 : order.found.index("convolution")]) == sorted(linear)
    assert sorted(n for n in order.found[1:-1] if n != "convolution") == sorted(p.numel() for p in params.values())
    assert order.found[-1] == 2  # losses and counts


@pytest.mark.errors
@pytest.mark.usefixtures("two_that_send_nothing")
def test_nobody_differentiates_or_maps_a_sum_over_ranks_to_a_silent_zero():
    params, batch, key = af.init(random.key(1), TINY), images(TINY, 4), random.key(2)
    optimizer = optim.sgd(0.1)
    step = train.make_step(None, optimizer, grad_fn=parallel.grad_fn(without_dropout))

    def after(params):
        state, _ = step(train.create_state(params, optimizer, key=key), batch)
        return without_dropout(state.params, batch)

    watched = {name: p.clone().requires_grad_() for name, p in params.items()}
    stacked = {name: torch.stack([p, p]) for name, p in params.items()}
    for call in (lambda: torch.func.grad(after)(params), lambda: after(watched), lambda: vmap(after)(stacked)):
        with pytest.raises(ValueError, match="sums over several ranks have no gradient and no vmap"):
            call()

    def weighted(scale):
        by = train.make_step(None, optimizer, grad_fn=parallel.grad_fn(lambda p, b, key: scale * tiny_loss(p, b)))
        return by(train.create_state(params, optimizer, key=key), batch)[1]["loss"]

    with pytest.raises(ValueError, match="sums over several ranks have no gradient and no vmap"):
        torch.func.grad(weighted)(torch.tensor(2.0))


@pytest.mark.errors
def test_evaluating_no_example_on_any_rank_is_refused():
    with pytest.raises(ValueError, match="at least one example"):
        parallel.evaluate(tiny_forward, af.init(random.key(1), TINY), [])
