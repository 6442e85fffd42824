"""A sweep of learning rates on the embedded digits: all members are trained at once, as one `vmap`.

    pip install 'alexnet_func[app]'
    python examples/ensemble_sweep.py

The members are one dict of stacked parameters, each with its own initial values, learning rate and velocity; each
computes what it would compute alone. On two cores: about 15 seconds. It prints each member's rate and test accuracy:

    rate 0.0003: 57.5%, rate 0.001: 86.2%, rate 0.003: 93.5%, rate 0.01: 96.3%, rate 0.03: 94.6%, rate 0.1: 10.1%
"""

import functools

import torch

import alexnet_func as af

SMALL = af.arch.Arch(
    "small",
    image_size=32,
    num_classes=10,
    features=(af.arch.Conv(16, 5, stride=2, padding=2), af.arch.ReLU(), af.arch.MaxPool(3, 2)),
    classifier=(af.arch.Linear(32), af.arch.ReLU(), af.arch.Linear(None)),
)
RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)


def main(rates: tuple[float, ...] = RATES, epochs: int = 5, batch_size: int = 32) -> dict[float, float]:
    """The test accuracy by learning rate, printed."""
    digits = af.data.datasets.load("digits")
    x, y = digits.train.images / 127.5 - 1, digits.train.labels
    init_key, train_key, order_key = af.random.split(af.random.key(0), 3)

    optimizer = af.ensemble.optimizer(lambda rate: af.optim.sgd(rate, momentum=0.9), torch.tensor(rates))
    loss = functools.partial(af.loss_fn, arch=SMALL)
    step = af.train.make_step(None, optimizer, grad_fn=af.ensemble.grad_fn(loss))
    members = af.ensemble.init(af.random.split(init_key, len(rates)), SMALL)
    state = af.train.create_state(members, optimizer, key=train_key)
    for key in af.random.split(order_key, epochs):
        for index in af.random.permutation(key, len(y)).long().split(batch_size):
            state, _ = step(state, (x[index], y[index]))

    logits = af.ensemble.forward(state.params, digits.test.images / 127.5 - 1, arch=SMALL)
    right = (logits.argmax(-1) == digits.test.labels).double().mean(1)
    accuracies = dict(zip(rates, right.tolist(), strict=True))
    print(", ".join(f"rate {rate:g}: {accuracy:.1%}" for rate, accuracy in accuracies.items()))
    return accuracies


if __name__ == "__main__":
    main()
