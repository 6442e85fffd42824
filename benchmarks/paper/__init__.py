"""What the paper claims and two processor cores can test, tested on CIFAR-10: one table a study."""
