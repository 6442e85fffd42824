"""The table of compositions: a part of it, and that it finds what it is for."""

import pytest
import torch

import alexnet_func as af
from parity.compositions import table
from parity.compositions.setting import SIZE, Subject
from parity.compositions.subjects import subjects
from parity.compositions.transforms import OUTPUTS, TRANSFORMS, given, readout

QUICK = {subject.name: (subject, transforms) for subject, transforms in table.chosen(quick=True)}


@pytest.mark.compiled  # export goes through Dynamo
@pytest.mark.parametrize("name", QUICK)
def test_no_cell_is_silently_wrong(name):
    subject, transforms = QUICK[name]
    wrong = [cell for cell in table.row(subject, transforms) if cell.outcome == "WRONG"]
    assert not wrong
    if not subject.refused:
        slopes = given(subject.function, SIZE, OUTPUTS).slopes()
        assert (slopes.abs().amax((0, 1)) > 1e-6).all(), "t does not move it"


@pytest.mark.slow
@pytest.mark.compiled
def test_the_whole_table():
    cells = [cell for subject, transforms in table.chosen() for cell in table.row(subject, transforms)]
    assert not [cell for cell in cells if cell.outcome == "WRONG"]
    assert len(cells) > 1000
    assert all(cell.detail for cell in cells if cell.outcome != "right")


def test_every_function_has_a_name_of_its_own_and_known_transforms():
    names = [subject.name for subject in subjects()]
    assert len(set(names)) == len(names)
    for subject in subjects():
        assert set(subject.refused) | set(subject.left_out) <= set(TRANSFORMS)


# What takes or returns no tensor that a transform could follow: a number, a file, a module, a process, a record.
APART = {
    "model": {"check_inputs", "check_images", "walk", "dropout_noise"},
    "losses": {"check_pair", "check_labels", "loss_fn"},
    "ops": {"square_root"},
    "train": {"with_precision", "in_precision_of", "compile_options", "metrics_of"},
    "per_sample": {"scaled_sum", "scale_to", "total_norm", "chunks", "count", "examples"},
    "influence": set(),
    "ensemble": set(),
    "curvature": set(),
    "privacy": {"poisson_sample", "padded_size", "epsilon", "noise_for", "audit"},
    "parallel": {
        *("rank", "world_size", "share", "evaluate", "broadcast", "first_rank_first", "joined"),
        *("summed", "counts", "example_keys", "gathered"),
    },
    "optim": {
        *("check_optimizer", "partition"),
        *("constant", "step_decay", "piecewise_constant", "warmup_linear", "warmup_cosine"),
    },
    "random": {"check_key", "threefry2x32", "as_shape", "draw", "generate", "split_each"},
}


# Rooms whose functions stand in another one too, under whose name they are tried.
REEXPORTED = {
    "per_sample": ("alexnet_func.pairs", "alexnet_func.examples"),
    "privacy": ("alexnet_func.accounting", "alexnet_func.sampling"),
}


@pytest.mark.parametrize("room", APART)
def test_no_public_function_is_left_out(room):
    module = getattr(af, room)
    here = {
        name
        for name, value in vars(module).items()
        if callable(value) and not name.startswith("_") and not isinstance(value, type)
        if getattr(value, "__module__", "").startswith("alexnet_func")
        if value.__module__ in (module.__name__, *REEXPORTED.get(room, ())) or room in ("optim", "random")
    }
    tried = {
        part.strip().split(".")[-1]
        for subject in subjects()
        for part in subject.name.split(",")
        if subject.name.split(".")[0] == room or room == "model"
    }
    assert here - tried - APART[room] == set()


def outcomes(function, **options):
    subject = Subject("planted", function, **options)
    return {cell.transform: cell.outcome for cell in table.row(subject, ["grad", "jvp", "vmap", "functionalize"])}


def test_a_gradient_that_is_cut_is_found():
    def cut(t, key):
        with torch.no_grad():
            return readout(t**2)

    assert outcomes(cut)["grad"] == "WRONG"
    assert outcomes(lambda t, key: readout(t.detach() * t))["grad"] == "WRONG"
    assert outcomes(lambda t, key: readout(t**2)) == dict.fromkeys(("grad", "jvp", "vmap", "functionalize"), "right")


def test_an_error_that_is_not_documented_is_found():
    def branching(t, key):
        return readout(t if t.sum() > 0 else 2 * t)

    assert outcomes(branching)["vmap"] == "WRONG"
    assert outcomes(branching, refused={"vmap": "data-dependent control flow"})["vmap"] == "refused"
    assert outcomes(branching, refused={"vmap": "other words"})["vmap"] == "WRONG"
    assert outcomes(branching, refused={"grad": "data-dependent"})["grad"] == "WRONG"
    assert outcomes(branching, left_out={"vmap": "on purpose"})["vmap"] == "left out"


def test_a_derivative_that_is_no_number_is_found():
    assert outcomes(lambda t, key: readout((t * 0).sqrt() + t))["grad"] == "WRONG"
