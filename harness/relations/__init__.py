"""Relations by what they change: rows, labels, memory, the paged cache."""
