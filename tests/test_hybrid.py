"""Linear layers split among the ranks, against one rank that holds them whole."""

import functools

import pytest
import torch
import torch.distributed as dist
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import alexnet_func as af
from alexnet_func import hybrid, optim, parallel, random, train
from tests.conftest import TINY, images
from tests.test_parallel import Finished, augmented, on_ranks, relative_distance, run_on_threads

STEPS, BATCH = 20, 8
tiny_split_loss = functools.partial(hybrid.loss_fn, arch=TINY)
OPTIMIZERS = {
    "sgd": functools.partial(optim.sgd, 0.05, momentum=0.9, weight_decay=5e-4),
    "adamw": functools.partial(optim.adamw, 0.01),
    "averaged": lambda: optim.averaged(optim.sgd(0.05), 0.9),
}


def step_of(optimizer):
    return train.make_step(None, optimizer, grad_fn=hybrid.grad_fn(tiny_split_loss, TINY))


def trained(name="sgd", steps=STEPS, start=None, split=True, batch=BATCH):
    """The whole parameters and optimiser's state, and losses, of steps with dropout and augmentation; from `start`."""
    key, generator = random.key(5), torch.Generator().manual_seed(0)
    count = 3 * batch
    x, y = torch.randint(256, (count, 3, 15, 15), generator=generator, dtype=torch.uint8), torch.arange(count) % 5
    optimizer = OPTIMIZERS[name]()
    own = hybrid.split if split else lambda tree, _: tree
    step = (
        step_of(optimizer)
        if split
        else train.make_step(None, optimizer, grad_fn=parallel.grad_fn(functools.partial(af.loss_fn, arch=TINY)))
    )
    state = train.create_state(own(af.init(key, TINY, dtype=torch.float64), TINY), optimizer, key=key)
    if start is not None:
        at, params, opt_state = start
        state = state._replace(step=at.clone(), params=own(params, TINY), opt_state=own(opt_state, TINY))
    found = []
    for i in range(int(state.step), int(state.step) + steps):
        index = parallel.share(random.permutation(random.fold_in(key, i), len(y))[:batch].long())
        state, metrics = step(state, (augmented(key, index, x[index]), y[index]))
        found.append(metrics["loss"].item())
    both = hybrid.whole if split else lambda tree, _: tree
    return (state.step, both(state.params, TINY), both(state.opt_state, TINY)), found


def sizes():
    """The shape of each rank's part of the first linear layer, and evaluation by parts."""
    params = af.init(random.key(5), TINY, dtype=torch.float64)
    part = hybrid.split(params, TINY)
    x, y = images(TINY, 8, torch.float64)
    own = parallel.share(torch.arange(8))
    evaluated = parallel.evaluate(functools.partial(hybrid.forward, arch=TINY), part, [(x[own], y[own])])
    return {name: list(p.shape) for name, p in part.items()}, evaluated


def product():
    """The Hessian of the mean loss times a vector, through the gradient of the gradient, by parts."""
    params = af.init(random.key(5), TINY, dtype=torch.float64)
    part = hybrid.split(params, TINY)
    x, y = images(TINY, 8, torch.float64)
    own = parallel.share(torch.arange(8))
    key = random.split(random.key(3), 8)[own]

    def loss(p):
        return hybrid.loss_fn(p, (x[own], y[own]), arch=TINY, key=key) / parallel.world_size()

    def along(p):  # each rank adds what its own part gives, and its examples
        return sum((g * part[name].cos()).sum() for name, g in torch.func.grad(loss)(p).items())

    found = torch.func.grad(along)(part)
    convolutions = [name for name in found if name.startswith("features")]
    sums = parallel.summed([found[name] for name in convolutions])
    return hybrid.whole({**found, **dict(zip(convolutions, sums, strict=True))}, TINY)


def uneven():
    """What ranks of 4, 3, 3 ... images are told, of a gradient and of a forward pass."""
    part = hybrid.split(af.init(random.key(5), TINY), TINY)
    x, y = images(TINY, 4 if parallel.rank() == 0 else 3)
    said = []
    for call in (
        lambda: hybrid.grad_fn(tiny_split_loss, TINY)(part, (x, y), random.key(0)),
        lambda: hybrid.forward(part, x, arch=TINY),
    ):
        try:
            call()
        except ValueError as error:
            said.append(str(error))
    return said


def halves():
    """The dtypes of the parameters after two steps in bfloat16."""
    optimizer = optim.sgd(0.05)
    part = hybrid.split(af.init(random.key(5), TINY, dtype=torch.bfloat16), TINY)
    state = train.create_state(part, optimizer, key=random.key(5))
    for _ in range(2):
        state, _ = step_of(optimizer)(state, images(TINY, 4))
    return {p.dtype for p in state.params.values()}


@pytest.fixture(scope="module")
def alone():
    return {name: trained(name) for name in OPTIMIZERS}


def all_of(ranks, path):
    training = [functools.partial(trained, name) for name in OPTIMIZERS]
    return on_ranks(ranks, path, *training, product, sizes, uneven, halves)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return all_of(4, tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="module", params=[2, 4])
def together(request, tmp_path_factory):
    if request.param == 4:
        return 4, request.getfixturevalue("four")
    return 2, all_of(2, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_split_layers_train_to_the_parameters_of_one_rank(alone, together, name):
    for (state, losses), (expected, one) in [(together[1][list(OPTIMIZERS).index(name)], alone[name])]:
        assert relative_distance(state[1], expected[1]) <= 1e-12
        torch.testing.assert_close(state[2], expected[2], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(losses, one, rtol=1e-12, atol=0)


def test_one_rank_alone_is_plain_training(alone):
    (state, losses), (expected, one) = alone["sgd"], trained(split=False)
    assert relative_distance(state[1], expected[1]) <= 1e-13
    torch.testing.assert_close(losses, one, rtol=1e-12, atol=0)


def test_each_rank_has_some_of_the_outputs_and_evaluates_with_the_others(together):
    ranks, (*_, (shapes, metrics), _, _) = together
    last = {2: (8, 2), 4: (4, 1)}[ranks]  # of 16 and of 5 outputs: the first ranks have what does not divide
    assert (shapes["classifier.1.weight"][0], shapes["classifier.4.bias"][0]) == last
    assert shapes["features.0.weight"] == [8, 3, 3, 3]
    assert list(metrics) == pytest.approx(list(sizes()[1]), rel=1e-7)


def test_ranks_of_other_numbers_of_images_are_told(together):
    ranks, found = together
    told = f"split layers need as many examples on each rank, got {[4] + [3] * (ranks - 1)}"
    assert found[-2] == [told, told]


def test_parameters_in_bfloat16_stay_so(together):
    assert together[1][-1] == {torch.bfloat16}


def test_gradients_of_gradients_go_through_what_travels(together):
    assert relative_distance(together[1][len(OPTIMIZERS)], product()) <= 1e-12


def test_what_four_ranks_had_goes_on_on_any_number(tmp_path, four):
    start, _ = four[0]
    expected = trained(steps=10, start=start, split=False)[0]
    assert relative_distance(trained(steps=10, start=start)[0][1], expected[1]) <= 1e-12
    again = functools.partial(trained, steps=10, start=start)
    together = on_ranks(2, tmp_path, functools.partial(again, split=False), again)
    for state, _ in (*together, *on_ranks(4, tmp_path, again)):
        assert relative_distance(state[1], expected[1]) <= 1e-12


@pytest.mark.parametrize(("ranks", "steps", "batch"), [(8, STEPS, BATCH), (64, 2, 64)])
def test_simulated_ranks_train_to_the_parameters_of_one(ranks, steps, batch):
    """Of 64 ranks most have no output of the last layer, and an image each."""
    threaded = pytest.importorskip("torch.testing._internal.distributed.multi_threaded_pg")
    if not hasattr(threaded.ThreadLocalWorld, "comms"):
        pytest.skip("the simulated ranks of torch 2.11 cannot be ended")
    found = {}
    run_on_threads(threaded, ranks, lambda rank: found.update({rank: trained(steps=steps, batch=batch)}))
    (_, expected, _), one = trained(steps=steps, split=False, batch=batch)
    assert len(found) == ranks
    for (_, params, _), losses in found.values():
        assert relative_distance(params, expected) <= 1e-12
        torch.testing.assert_close(losses, one, rtol=1e-12, atol=0)


def compiled():
    """What two compiled steps without dropout make of the parameters: split layers, and whole ones."""
    parallel._LARGE = 300  # bytes, in this process of its own: all weights of TINY travel by themselves
    key, (x, y), own = random.key(5), images(TINY, 8, torch.float64), parallel.share(torch.arange(8))
    params, optimizer = af.init(key, TINY, dtype=torch.float64), optim.sgd(0.05, momentum=0.9)

    def without_dropout(loss, params, batch, *, key=None):
        return loss(params, batch, arch=TINY)

    split = hybrid.grad_fn(functools.partial(without_dropout, hybrid.loss_fn), TINY)
    whole = parallel.grad_fn(functools.partial(without_dropout, af.loss_fn))
    found = []
    for grad_fn, start in ((split, hybrid.split(params, TINY)), (whole, params)):
        step = train.compile_step(train.make_step(None, optimizer, grad_fn=grad_fn), donate=True)
        state = train.create_state(start, optimizer, key=key)
        for _ in range(2):
            state, _ = step(state, (x[own], y[own]))
        found.append(state.params)
    return hybrid.whole(found[0], TINY), found[1]


@pytest.mark.slow
def test_compiled_steps_of_two_ranks_have_the_numbers_of_one(tmp_path):
    key, optimizer = random.key(5), optim.sgd(0.05, momentum=0.9)
    step = train.make_step(lambda p, batch, key: af.loss_fn(p, batch, arch=TINY), optimizer)
    state = train.create_state(af.init(key, TINY, dtype=torch.float64), optimizer, key=key)
    for _ in range(2):
        state, _ = step(state, images(TINY, 8, torch.float64))
    for params in on_ranks(2, tmp_path, compiled)[0]:
        assert relative_distance(params, state.params) <= 1e-12


class Sent(TorchDispatchMode):
    """Counts what the gradient's collectives carry: bytes for the other ranks, of a ring where all are summed."""

    def __init__(self, ranks):
        super().__init__()
        self.ranks, self.bytes = ranks, 0.0

    def summed(self, flat, async_op=False):
        self.bytes += 2 * (self.ranks - 1) / self.ranks * flat.numel() * flat.element_size()
        return Finished()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        match str(function):
            case "_c10d_functional.all_gather_into_tensor.default":
                self.bytes += (self.ranks - 1) * args[0].numel() * args[0].element_size()
            case "_c10d_functional.all_to_all_single.default":
                self.bytes += sum(args[2][1:]) * args[0].element_size()
        return function(*args, **(kwargs or {}))


def sent(grad_fn, params, n, ranks):
    """Bytes that rank 0 sends for a gradient of n photographs."""
    x, y = torch.empty(n, 3, 224, 224), torch.zeros(n, dtype=torch.int64)
    with Sent(ranks) as counter, pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", counter.summed)
        grad_fn(params, (x, y), torch.zeros(2, dtype=torch.int32))
    return counter.bytes


@pytest.mark.usefixtures("two_that_send_nothing")
def test_activations_are_a_seventh_of_the_gradients_bytes_and_in_bfloat16_less_than_a_tenth():
    arch, n = af.arch.ALEXNET, 128
    ours, theirs = (functools.partial(f, arch=arch) for f in (hybrid.loss_fn, af.loss_fn))
    with FakeTensorMode(allow_non_fake_inputs=True):
        params = {name: torch.empty(shape) for name, shape in af.arch.param_shapes(arch).items()}
        part = hybrid.split(params, arch)
        data = sent(parallel.grad_fn(theirs), params, n, 2)
        plain = sent(hybrid.grad_fn(ours, arch), part, n, 2)
        rounded = sent(hybrid.grad_fn(train.with_precision(ours, "bf16"), arch), part, n, 2)
    convolutions = 4 * sum(p.numel() for name, p in params.items() if name.startswith("features"))
    # Inputs go to the other rank, and their gradients come back; of outputs, half of which are here, and back.
    numbers = 2 * n * (9216 + 4096 + 4096) + 2 * n * (4096 + 4096 + 1000) / 2
    counts = 2 * 8
    assert data == pytest.approx(4 * 61_100_840 + 2 * 4 + counts)
    assert plain == pytest.approx(4 * numbers + convolutions + 4 + 2 * counts)
    assert rounded == pytest.approx(2 * numbers + convolutions + 4 + 2 * counts)
    assert (plain / data, rounded / data) == pytest.approx((0.133, 0.087), abs=5e-4)


@pytest.mark.errors
@pytest.mark.usefixtures("two_that_send_nothing")
def test_what_split_layers_cannot_do_is_refused():
    params = af.init(random.key(1), TINY)
    x, _ = images(TINY, 4)
    with pytest.raises(ValueError, match=r"rank 0's part of the params of tiny: classifier\.1\.weight must be"):
        hybrid.forward(params, x, arch=TINY)
    part = hybrid.split(params, TINY)
    with pytest.raises(TypeError, match="scale integer images first"):
        hybrid.forward(part, x.to(torch.uint8), arch=TINY)
    with pytest.raises(ValueError, match="tiny takes images"):
        hybrid.forward(part, x[:, :2], arch=TINY)
    with pytest.raises(ValueError, match=r"classifier.1.weight of tiny has the shape \[16, 48\], got \[8, 48\]"):
        hybrid.split(part, TINY)
    with pytest.raises(ValueError, match=r"rank 0's part of the params of alexnet: .*classifier\.1\.weight must be"):
        hybrid.grad_fn(tiny_split_loss, af.arch.ALEXNET)(part, images(TINY, 4), random.key(0))
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(lambda image: hybrid.forward(part, image[None], arch=TINY))(x)


@pytest.mark.compiled
@pytest.mark.usefixtures("two_that_send_nothing")
def test_a_compiled_step_is_one_graph_that_gathers_and_sends_home():
    found = []

    def counted(graph, _):
        found.append([str(node.target) for node in graph.graph.nodes])
        return graph

    optimizer = optim.sgd(0.05, momentum=0.9)
    state = train.create_state(hybrid.split(af.init(random.key(1), TINY), TINY), optimizer, key=random.key(2))
    with torch.no_grad():
        torch.compile(step_of(optimizer), fullgraph=True, backend=counted)(state, images(TINY, 4))
    assert len(found) == 1
