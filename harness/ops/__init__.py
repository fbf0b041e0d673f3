"""One declaration an op; the file's name is the op's."""
