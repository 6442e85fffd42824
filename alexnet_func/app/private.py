"""What a private run adds: how much it spends, whom it samples, and the key of its noise, which nobody may know."""

import math
import os
import secrets
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alexnet_func import files, parallel, privacy, random
from alexnet_func.app.recipes import Recipe
from alexnet_func.data import preprocess
from alexnet_func.data.preprocess import Moments

KEY = "noise.key"  # in a run's directory, until the run has ended
# Not those of the training images, which would tell of them.
MOMENTS = Moments((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class Plan(NamedTuple):
    """Of `examples` each step samples everyone by chance at `sampling_rate`, and keeps at most `sample_size` of them.

    `noise_multiplier` is that with which all `steps` together spend the recipe's epsilon at `delta`.
    """

    examples: int
    sampling_rate: float
    sample_size: int
    steps: int
    delta: float
    noise_multiplier: float

    def spent(self, steps: int) -> float:
        """The epsilon of the first so many steps."""
        rate, size = self.sampling_rate, self.sample_size
        return privacy.epsilon(self.noise_multiplier, rate, steps, self.delta, examples=self.examples, size=size)


def planned(recipe: Recipe, examples: int) -> Plan | None:
    """The plan of a private recipe for so many images; None for a recipe that is not private.

    The rate gives `batch_size` images a step on average, and as many steps as epochs of it would have. `delta` is the
    recipe's, or the largest power of ten below one in the number of images. The noise is rounded up to a thousandth.
    """
    if recipe.dp_epsilon is None:
        return None
    if recipe.dp_audit is not None and recipe.dp_audit > examples:
        raise ValueError(f"--dp-audit {recipe.dp_audit} is more than the {examples} training images")
    rate, steps = recipe.batch_size / examples, examples // recipe.batch_size * recipe.epochs
    ranks = parallel.world_size()
    size = min(examples, -(-privacy.padded_size(examples, rate) // ranks) * ranks) // ranks * ranks
    delta = recipe.dp_delta or 10.0 ** -(math.floor(math.log10(examples)) + 1)
    noise = privacy.noise_for(recipe.dp_epsilon, delta, rate, steps, examples=examples, size=size)
    return Plan(examples, rate, size, steps, delta, math.ceil(1000 * noise) / 1000)


class Secrets(NamedTuple):
    """The keys [2] of the noise, of the samples, and of the coins that leave out images for an audit."""

    noise: random.Key
    samples: random.Key
    coins: random.Key


def sampled(plan: Plan, secrets: Secrets, left_out: Tensor, step: int) -> Tensor:
    """The indices of those whom a step samples, but for those left out; under torchrun of this rank's share."""
    key = random.fold_in(secrets.samples.cpu(), step)
    index, weights = privacy.poisson_sample(key, plan.examples, plan.sampling_rate, plan.sample_size)
    index = index[weights > 0]
    return index[~torch.isin(index, left_out)][parallel.rank() :: parallel.world_size()]


def audited(recipe: Recipe, examples: int, secrets: Secrets) -> tuple[Tensor, Tensor]:
    """The images of the recipe's audit, and for each whether it is trained on; empty without one."""
    chosen = preprocess.shuffle(examples)[: recipe.dp_audit or 0]
    return chosen, random.bernoulli(secrets.coins.cpu(), 0.5, (len(chosen),))


def secret(out: Path | None, go_on: bool, device: torch.device) -> Secrets | None:
    """Keys from the system's randomness; the first rank's on every rank.

    A step that is run again after a stop must draw what it drew before, or it would reveal more than it counts: the
    keys stay in `out`, readable by its owner alone, until `forget`. None where a run is to `go_on` whose keys are gone.
    Raises ValueError for a file that holds no key.
    """
    found = torch.zeros(3, dtype=torch.int64, device=device)
    if parallel.rank() == 0:
        number = _kept(out, go_on)
        words = [0, 0, 0] if number is None else [number >> 32, number & 0xFFFFFFFF, 1]
        found = torch.tensor(words, dtype=torch.int64, device=device)
    first, second, known = parallel.broadcast(found).tolist()
    if not known:
        return None
    key = random.wrap_key_data(torch.tensor([first, second], device=device).to(torch.uint32))
    return Secrets(*random.split(key, 3).unbind())


def forget(out: Path) -> None:
    """Removes the keys of a run that has ended, which needs them no more."""
    (out / KEY).unlink(missing_ok=True)


def _kept(out: Path | None, go_on: bool) -> int | None:
    if out is not None and go_on:
        if not (out / KEY).exists():
            return None
        text = (out / KEY).read_text(encoding="ascii", errors="replace").strip()
        if len(text) != 16 or not set(text) <= set("0123456789abcdef"):
            raise ValueError(f"{out / KEY} holds no key of a private run")
        return int(text, 16)
    number = secrets.randbits(64)
    if out is not None:
        os.close(os.open(out / KEY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        files.write_text(out / KEY, f"{number:016x}\n")  # which keeps the permissions
    return number


def told(recipe: Recipe, plan: Plan) -> str:
    """A line about what a run will spend, and how."""
    bound = f"{recipe.dp_max_norm:g}" + ("" if recipe.dp_quantile is None else f" and then {recipe.dp_quantile:.0%}")
    return (
        f"private: epsilon {recipe.dp_epsilon:g} at delta {plan.delta:g} after {plan.steps} steps of "
        f"{recipe.batch_size} images on average, clipped at {bound}, noise multiplier {plan.noise_multiplier:g}"
    )


def recorded(plan: Plan | None) -> dict[str, Any]:
    """What of a plan a resumed run must have in common."""
    return {} if plan is None else plan._asdict()
