"""One program twice, to be read side by side: `in_jax` and, with alexnet_func, `in_torch`. They print the same.

Fan-ins are powers of four: XLA divides by another constant as a product with its reciprocal, which rounds otherwise.
"""
