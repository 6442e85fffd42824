"""What of a run's state each rank holds: all of it, or of the linear layers its own part."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from alexnet_func import hybrid, parallel
from alexnet_func.arch import Arch
from alexnet_func.train import TrainState


class Layout(NamedTuple):
    """This rank's state of a whole one, the whole one of all ranks' states, and whether the first rank says yes.

    Of the last two all ranks must call each at the same time.
    """

    own: Callable[[TrainState], TrainState]
    whole: Callable[[TrainState], TrainState]
    agreed: Callable[[bool], bool]


DATA = Layout(own=lambda state: state, whole=lambda state: state, agreed=lambda wish: wish)


def split(network: Arch, device: torch.device) -> Layout:
    """Of ranks that have the linear layers' outputs divided among them, as `hybrid` divides them."""

    def own(state: TrainState) -> TrainState:
        params, opt_state = (hybrid.split(tree, network) for tree in (state.params, state.opt_state))
        return state._replace(params=params, opt_state=opt_state)

    def whole(state: TrainState) -> TrainState:
        params, opt_state = (hybrid.whole(tree, network) for tree in (state.params, state.opt_state))
        return state._replace(params=params, opt_state=opt_state)

    def agreed(wish: bool) -> bool:
        return bool(parallel.broadcast(torch.tensor(wish, device=device)))

    return Layout(own, whole, agreed)
