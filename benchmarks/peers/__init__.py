"""Other libraries doing the same work, each as its own documentation recommends (extra `peers`)."""
