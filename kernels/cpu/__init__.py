"""CPU kernels: ``<op>.py`` checks and launches, ``<op>.cpp`` computes, once per instruction set. See ../README.md."""
