"""Independent computations of an arch's loss and gradients, from the arch as data, each with another library."""
