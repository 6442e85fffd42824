"""A learning rate that is learned on the embedded digits, by the gradient of the loss after five training steps.

    pip install 'alexnet_func[app]'
    python examples/learned_rate.py

Training is a function of its learning rate like any other: `grad` goes through the five steps, the network and the
optimiser's momentum (Maclaurin et al. 2015, "Gradient-based hyperparameter optimization through reversible learning").
The loss is that of images that the steps have not seen; AdamW moves the rate's logarithm. On two cores: about ten
seconds. It prints the rate, and the loss after five steps with it, at the start and at the end:

    rate 0.0030 gives a loss of 2.30, the learned 0.1412 one of 2.03
"""

import functools

import torch
from torch import Tensor

import alexnet_func as af

SMALL = af.arch.Arch(
    "small",
    image_size=32,
    num_classes=10,
    features=(af.arch.Conv(16, 5, stride=2, padding=2), af.arch.ReLU(), af.arch.MaxPool(3, 2)),
    classifier=(af.arch.Linear(32), af.arch.ReLU(), af.arch.Linear(None)),
)
LOSS = functools.partial(af.loss_fn, arch=SMALL)


def main(start: float = 0.003, updates: int = 20, batch_size: int = 64) -> tuple[tuple[float, float], ...]:
    """The learning rate and the loss after five steps with it, at the start and at the end, printed."""
    split = af.data.datasets.load("digits").train
    x, y = split.images / 127.5 - 1, split.labels
    *batches, unseen = [(x[i * batch_size :][:batch_size], y[i * batch_size :][:batch_size]) for i in range(6)]
    params = af.init(af.random.key(0), SMALL)

    def final_loss(rates: dict[str, Tensor], batch: tuple[Tensor, Tensor], *, key: Tensor | None = None) -> Tensor:
        inner = af.optim.sgd(rates["log_rate"].exp(), momentum=0.9)
        step = af.train.make_step(LOSS, inner)
        state = af.train.create_state(params, inner, key=af.random.key(0))
        for seen in batches:
            state, _ = step(state, seen)
        return LOSS(state.params, batch)

    outer = af.optim.adamw(0.2, weight_decay=0.0)
    step = af.train.make_step(final_loss, outer)
    state = af.train.create_state({"log_rate": torch.tensor(start).log()}, outer, key=af.random.key(0))
    before = float(final_loss(state.params, unseen))
    for _ in range(updates):
        state, _ = step(state, unseen)
    learned, after = float(state.params["log_rate"].exp()), float(final_loss(state.params, unseen))
    print(f"rate {start:.4f} gives a loss of {before:.2f}, the learned {learned:.4f} one of {after:.2f}")
    return (start, before), (learned, after)


if __name__ == "__main__":
    main()
