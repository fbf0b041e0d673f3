"""The NPU without silicon: how far each of our Ascend kernels is shown right, level by level; docs/npu.md."""
