"""Data: what to load (`datasets`), where its images come from (`sources`), pure, keyed augmentation (`augment`)."""

from alexnet_func.data import augment, datasets, memory, prepare, preprocess, shards, sources, stream

__all__ = ["augment", "datasets", "memory", "prepare", "preprocess", "shards", "sources", "stream"]
