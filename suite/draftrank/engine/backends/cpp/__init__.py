"""Short forwards on a CPU by kernels of our own, compiled for the machine they run on."""
