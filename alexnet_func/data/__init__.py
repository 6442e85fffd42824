"""Data: what to load (`datasets`) and pure, keyed augmentation (`augment`)."""

from alexnet_func.data import augment, datasets

__all__ = ["augment", "datasets"]
