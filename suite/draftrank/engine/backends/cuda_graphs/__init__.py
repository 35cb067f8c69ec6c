"""Forwards on a GPU as captured CUDA graphs of kernels of our own."""
