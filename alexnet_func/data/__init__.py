"""Data: what to load (`datasets`), into memory or as a stream, and pure, keyed augmentation (`augment`)."""

from alexnet_func.data import augment, datasets, memory, stream

__all__ = ["augment", "datasets", "memory", "stream"]
