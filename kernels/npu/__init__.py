"""Ascend NPU kernels in Triton 3.2's language and torch_npu's fused ops: ``<op>.py`` holds kernel, then launcher."""
