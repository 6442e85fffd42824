"""Who differentiates or maps a call, and when autograd's tape may be off.

A function that turns the tape off for its own sake cuts every gradient through it to zero without a word. So it does
only where it knows all that it computes with, its arguments, and none of them is watched. What calls a function of the
user's leaves the tape as it is: that function may hold anything.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def watched(*trees: Any) -> bool:
    """Whether some tensor in `trees` requires grad or is wrapped by a `torch.func` transform."""
    tensors = (t for t in pytree.tree_leaves(trees) if isinstance(t, Tensor))
    return any(t.requires_grad or torch.func.debug_unwrap(t) is not t for t in tensors)


def transformed() -> bool:
    """Whether a `torch.func` transform is at work, whatever it wraps."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def mapped() -> bool:
    """Whether a `vmap` is at work."""
    stack = torch._C._functorch.get_interpreter_stack() or []
    return any(level.key() == torch._C._functorch.TransformType.Vmap for level in stack)


def without_tape(*trees: Any) -> AbstractContextManager:
    """Off with autograd, unless somebody differentiates or maps the call itself: it would double time and memory.

    `trees` are all the tensors that the block computes with.
    """
    return nullcontext() if torch.compiler.is_compiling() or watched(trees) else torch.no_grad()
