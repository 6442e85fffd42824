"""The networks and inputs that all rivals are given."""

from typing import NamedTuple

from torch import Tensor

import alexnet_func as af


class Case(NamedTuple):
    """A network on N images, computed on a device in a precision ("float32", "tf32" or "bf16")."""

    arch: str
    n: int
    device: str = "cpu"
    precision: af.train.Precision = "float32"

    @property
    def title(self) -> str:
        """For a table."""
        side = af.arch.get(self.arch).image_size
        lowered = "" if self.precision == "float32" else f", {self.precision}"
        return f"{self.arch} {side}x{side}, N = {self.n}{lowered}"


class Setting(NamedTuple):
    """The same numbers for every rival."""

    arch: af.arch.Arch
    params: dict[str, Tensor]
    x: Tensor
    y: Tensor


def setting(case: Case) -> Setting:
    """Drawn from fixed keys; no dropout, so that every rival computes the same."""
    arch = af.arch.get(case.arch)
    init_key, image_key, label_key = af.random.split(af.random.key(0, case.device), 3).unbind()
    x = af.random.normal(image_key, (case.n, 3, arch.image_size, arch.image_size))
    y = af.random.randint(label_key, (case.n,), 0, arch.num_classes).long()
    return Setting(arch, af.init(init_key, arch), x, y)
