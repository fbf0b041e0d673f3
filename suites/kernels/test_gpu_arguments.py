"""Arguments of CUDA C++ kernels: Python declares them as the sources do, name by name and type by type."""

from __future__ import annotations

import ctypes
import re
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed; no GPU kernel can be imported")

from minimax_m2.kernels.gpu import attention_rows, divisor, experts_halves, scaled_product, sum_add_rms_norm, toolkit

TYPES: dict[str, Any] = {
    "long long": ctypes.c_longlong, "unsigned": ctypes.c_uint, "int": ctypes.c_int, "float": ctypes.c_float,
    "Divisor": divisor.Divisor,
}  # fmt: skip


def declared(file: str, struct: str) -> list[tuple[str, Any]]:
    """The fields of a struct of C++."""
    body = (toolkit.SOURCE_DIR / file).read_text().partition(f"struct {struct} {{")[2].partition("};")[0]
    fields = []
    for line in re.sub(r"//.*|\bconst\b", "", body).split(";"):
        kind, names = re.findall(r"^\s*(long long|\w*)(.*)", line, re.DOTALL)[0]
        for name in filter(str.strip, names.split(",")):
            fields.append((name.strip(" *\n"), ctypes.c_void_p if "*" in name else TYPES.get(kind)))
    return fields


@pytest.mark.parametrize(
    ("file", "name", "here"),
    [
        ("attention_rows.cu", "Attention", attention_rows.Arguments), ("divisor.cuh", "Divisor", divisor.Divisor),
        ("experts_halves.cuh", "Experts", experts_halves.Experts), ("sum_add_rms_norm.cu", "Row", sum_add_rms_norm.Row),
        ("scaled_product.cuh", "Product", scaled_product.Product),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_python_declares_the_arguments_as_the_source_does(file: str, name: str, here: type[ctypes.Structure]) -> None:
    assert declared(file, name) == [(field[0], field[1]) for field in here._fields_]
