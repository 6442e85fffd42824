"""KFAC and spectra of AlexNet's curvature by curvlinops, whose operators take a module: `interop.to_module` gives one.

    pip install curvlinops-for-pytorch
    python examples/curvature.py

Our own products with the Hessian and the Gauss-Newton matrix (`af.curvature`) are the same matrices'; what curvlinops
adds are Kronecker-factored approximations, inverses and spectral densities (Dangel et al. 2025, "Position: curvature
matrices should be democratized via linear operators"). On two cores: under a minute.
"""

import functools

import torch
from curvlinops import EKFACLinearOperator, GGNLinearOperator, KFACInverseLinearOperator, KFACLinearOperator
from scipy.sparse.linalg import eigsh

import alexnet_func as af

SMALL = af.arch.Arch(
    "small",
    image_size=32,
    num_classes=10,
    features=(af.arch.Conv(16, 5, stride=2, padding=2), af.arch.ReLU(), af.arch.MaxPool(3, 2)),
    classifier=(af.arch.Linear(32), af.arch.ReLU(), af.arch.Linear(None)),
)


def main(count: int = 200, damping: float = 0.3) -> tuple[float, list[float]]:
    """The largest eigenvalue of the GGN, and the loss before and after a step by KFAC and by EKFAC, printed."""
    digits = af.data.datasets.load("digits").train
    x, y = digits.images[:count] / 127.5 - 1, digits.labels[:count]
    params = af.init(af.random.key(0), SMALL)
    loss = functools.partial(af.loss_fn, arch=SMALL)

    module = af.interop.to_module(params, SMALL)
    weights = list(module.parameters())
    cross_entropy = torch.nn.CrossEntropyLoss()
    ggn = GGNLinearOperator(module, cross_entropy, weights, [(x, y)])
    largest = float(eigsh(ggn.to_scipy(), k=1, return_eigenvectors=False)[0])

    grads = torch.func.grad(loss)(params, (x, y))
    losses = [float(loss(params, (x, y)))]
    for approximation in (KFACLinearOperator, EKFACLinearOperator):
        curvature = approximation(module, cross_entropy, weights, [(x, y)], fisher_type="empirical")
        direction = KFACInverseLinearOperator(curvature, damping=damping, use_exact_damping=True) @ list(grads.values())
        moved = {name: p - 0.3 * d for (name, p), d in zip(params.items(), direction, strict=True)}
        losses.append(float(loss(moved, (x, y))))

    print(f"largest eigenvalue of the GGN {largest:.3f}")
    print("loss {:.3f}, after a step by KFAC {:.3f}, by EKFAC {:.3f}".format(*losses))
    return largest, losses


if __name__ == "__main__":
    main()
