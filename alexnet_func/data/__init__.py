"""Data: what to load (`datasets`), into memory, as a stream or from shards; pure, keyed augmentation (`augment`)."""

from alexnet_func.data import augment, datasets, memory, prepare, shards, stream

__all__ = ["augment", "datasets", "memory", "prepare", "shards", "stream"]
