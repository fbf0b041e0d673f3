"""NVIDIA GPU kernels in Triton: ``<op>.py`` holds the kernel, then its launcher."""
