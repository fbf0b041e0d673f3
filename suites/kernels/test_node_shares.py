"""Packed weights are touched first, and read first, by threads of the memory node that owns them."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from minimax_m2.kernels.cpu import extension, isa, node_shares
from minimax_m2.kernels.cpu.experts import experts, pack_experts
from minimax_m2.kernels.cpu.fp8_linear import fp8_linear, pack_fp8_linear
from minimax_m2.kernels.cpu.node_shares import listed, pretended, usable

# Blocks, nodes and the first block of each node: as even as whole blocks allow, also where there are fewer than nodes.
SHARES = [(48, 2, [0, 24, 48]), (5, 2, [0, 2, 5]), (7, 3, [0, 2, 4, 7]), (1, 3, [0, 0, 0, 1]), (0, 2, [0, 0, 0])]
PAGE = 64
UNTOUCHED = 0xFF


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("node_shares")
    source = Path(__file__).with_name("node_shares_probe.cpp")
    subprocess.run(extension.kernel_command(source, "portable", folder / "probe.o"), check=True)
    command = [extension.compiler(), "-shared", "-fopenmp", str(folder / "probe.o"), "-o", str(folder / "probe.so")]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(folder / "probe.so"))
    library.probe_bind(ctypes.c_void_p(node_shares.view_address()))
    return library


def taken(probe: ctypes.CDLL, *shape: int, threads: int, own: bool, at_once: int = 1) -> tuple[Tensor, Tensor]:
    """By unit, the node of the thread that took it, and how often it was taken."""
    node, times = torch.full(shape, -1, dtype=torch.int32), torch.zeros(shape, dtype=torch.int32)
    sizes = (ctypes.c_int64(size) for size in shape)
    probe.probe_loop(
        *sizes, ctypes.c_int(threads), ctypes.c_int64(at_once), ctypes.c_int(own),
        ctypes.c_void_p(node.data_ptr()), ctypes.c_void_p(times.data_ptr()),
    )  # fmt: skip
    return node, times


def owners(blocks: int, nodes: int) -> Tensor:
    """The node of each block."""
    starts = next(starts for b, n, starts in SHARES if (b, n) == (blocks, nodes))
    return torch.repeat_interleave(torch.arange(nodes), torch.tensor(starts).diff())


def compiles(claims: list[str], folder: Path) -> bool:
    source = folder / "claims.cpp"
    asserted = "\n".join(f"static_assert({claim});" for claim in claims)
    source.write_text(f'#include "node_shares.h"\nnamespace minimax_m2 {{\n{asserted}\n}}\n')
    command = [extension.compiler(), "-std=c++20", "-fopenmp", "-fsyntax-only", f"-I{extension.SOURCE_DIR}"]
    return subprocess.run([*command, str(source)], capture_output=True, check=False).returncode == 0


def test_shares_are_even_and_leave_no_block_out(tmp_path: Path) -> None:
    rows = [f"share_begin({b}, {n}, {at}) == {first}" for b, n, starts in SHARES for at, first in enumerate(starts)]
    assert compiles(rows, tmp_path)


def test_a_false_row_does_not_compile(tmp_path: Path) -> None:
    assert not compiles(["share_begin(48, 2, 1) == 23"], tmp_path)


@pytest.mark.parametrize("threads", [1, 3, 4])
@pytest.mark.parametrize(("blocks", "nodes"), [(b, n) for b, n, _ in SHARES])
def test_every_unit_is_taken_once_whoever_helps(probe: ctypes.CDLL, blocks: int, nodes: int, threads: int) -> None:
    with pretended(nodes):
        _, times = taken(probe, 3, blocks, 2, threads=threads, own=False, at_once=4)
    assert (times == 1).all()


@pytest.mark.parametrize(("blocks", "nodes"), [(48, 2), (5, 2), (7, 3)])
def test_without_help_a_block_is_its_owners(probe: ctypes.CDLL, blocks: int, nodes: int) -> None:
    with pretended(nodes):
        node, times = taken(probe, 3, blocks, 1, threads=2 * nodes, own=True)
    assert (times == 1).all()
    assert torch.equal(node[:, :, 0].long(), owners(blocks, nodes).expand(3, blocks))


def touched(blocks: int, nodes: int, threads: int) -> Tensor:
    """Which blocks of two matrices, three pages each, the library of a kernel touches."""
    memory = torch.full((PAGE + 2 * blocks * 3 * PAGE,), UNTOUCHED, dtype=torch.uint8)
    first = -memory.data_ptr() % PAGE
    torch.set_num_threads(threads)
    with pretended(nodes):
        extension.load("fp8_linear").minimax_m2_touch_first(
            ctypes.c_void_p(memory.data_ptr() + first), *(ctypes.c_int64(n) for n in (2, blocks, 3 * PAGE, PAGE))
        )
    found = memory[first:][: 2 * blocks * 3 * PAGE].view(2, blocks, 3, PAGE) != UNTOUCHED
    assert not found[..., 1:].any(), "a page is touched by its first byte alone"
    return found[..., 0].all(-1)


def test_packing_touches_every_page_from_the_node_that_owns_it() -> None:
    assert touched(48, 2, threads=2).all()
    # The first of two nodes has the only thread: what the other owns is left to be touched there.
    assert torch.equal(touched(48, 2, threads=1), (owners(48, 2) == 0).expand(2, 48))
    assert torch.equal(touched(7, 3, threads=1), (owners(7, 3) == 0).expand(2, 7))


def on_nodes(call: Callable[[], tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """What a call returns on one, two and three nodes, some of which have no thread of their own."""
    for nodes, threads in [(1, 1), (2, 1), (2, 3), (3, 2)]:
        torch.set_num_threads(threads)
        with pretended(nodes):
            yield call()


def same(found: Iterator[tuple[Tensor, ...]]) -> bool:
    """Whether all of them are equal, bit for bit."""
    first = next(found)
    return all(torch.equal(a, b) for other in found for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("name", isa.available())
def test_nodes_change_no_bit_of_a_dense_layer(name: str) -> None:
    codes = (torch.arange(200 * 96) * 37 % 251 - 125).view(200, 96).div(64).to(torch.float8_e4m3fn)
    scale, x = torch.full((2, 1), 0.5), (torch.arange(5 * 96) % 13 - 6).view(5, 96).bfloat16()

    def call() -> tuple[Tensor, ...]:
        packed = pack_fp8_linear(codes, scale)
        return packed.weight.view(torch.uint8), fp8_linear(x, packed)

    with isa.forced(name):
        assert same(on_nodes(call))


@pytest.mark.parametrize("name", isa.available())
def test_nor_of_experts(name: str) -> None:
    shapes = ((3, 200, 96), (3, 96, 100))
    w13, w2 = ((torch.arange(torch.Size(s).numel()) * 37 % 251 - 125).view(s).bfloat16() / 512 for s in shapes)
    x, ids = (torch.arange(5 * 96) % 13 - 6).view(5, 96).bfloat16(), (torch.arange(10) * 7 % 4 - 1).view(5, 2)
    weights = torch.arange(1.0, 11.0).view(5, 2) / 8

    def call() -> tuple[Tensor, ...]:
        packed = pack_experts(w13, w2)
        return packed.w13, packed.w2, experts(x, packed, weights, ids)

    with isa.forced(name):
        assert same(on_nodes(call))


def test_a_result_that_hangs_on_nodes_is_noticed() -> None:
    assert not same(on_nodes(lambda: (torch.tensor(node_shares.count()),)))


# Packs a weight on bound threads; prints Linux's node of each page that begins in a block, and the block's owner's.
PLACES = """
import ctypes, json, mmap, sys
import torch
from minimax_m2.kernels.cpu import node_shares
from minimax_m2.kernels.cpu.column_packing import blocks, every_row

laid = blocks(torch.zeros(2, 4096, 1024, dtype=torch.bfloat16), every_row(4096))
pages = [-(-laid.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE + i * mmap.PAGESIZE for i in range(laid.nbytes // mmap.PAGESIZE)]
found = (ctypes.c_int * len(pages))()
asked = ctypes.CDLL(None, use_errno=True).syscall(int(sys.argv[1]), 0, len(pages), (ctypes.c_void_p * len(pages))(*pages), None, found, 0)
if asked:
    sys.exit(f"move_pages: errno {ctypes.get_errno()}")
nodes, each = node_shares.nodes(), laid.nbytes // (2 * 64)
block = [(page - laid.data_ptr()) // each % 64 for page in pages]
owner = [max(n for n in range(len(nodes)) if 64 * n // len(nodes) <= b) for b in block]
print(json.dumps([list(found), [nodes[n] for n in owner]]))
"""  # noqa: E501
MOVE_PAGES = {"x86_64": 279, "aarch64": 239}


def test_packed_pages_lie_in_the_memory_of_their_owner() -> None:
    number = MOVE_PAGES.get(os.uname().machine)
    if number is None:
        pytest.skip("Linux's number of move_pages is not known here")
    environment = {**os.environ, "OMP_PROC_BIND": "spread", "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    done = subprocess.run(
        [sys.executable, "-c", PLACES, str(number)], env=environment, capture_output=True, text=True, check=False
    )
    if done.stderr.startswith("move_pages"):
        pytest.skip(f"Linux does not tell: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    actual, expected = json.loads(done.stdout)
    # A huge page may hold the end of one share and the start of the next: it lies with one of the two.
    wrong = sum(a != e for a, e in zip(actual, expected, strict=True))
    assert wrong <= 2 * 2 * 512 * (len(node_shares.nodes()) - 1), "pages lie elsewhere than their readers"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", {0}), ("0-2,5\n", {0, 1, 2, 5}), ("", set()), ("3,4", {3, 4}), ("8-11", {8, 9, 10, 11})],
)
def test_linux_lists_are_read(text: str, expected: set[int]) -> None:
    assert listed(text) == expected


@pytest.mark.parametrize(
    ("allowed", "expected"), [({0, 1, 8}, (0, 2)), ({1}, (0,)), ({9, 30}, (2,)), (set(), ())], ids=str
)
def test_nodes_count_where_this_process_may_run(allowed: set[int], expected: tuple[int, ...]) -> None:
    # The second has memory and no processor.
    processors = {2: frozenset({8, 9}), 0: frozenset({0, 1}), 1: frozenset[int]()}
    assert usable(processors, frozenset(allowed)) == expected


def test_this_machine_has_a_node_for_every_share() -> None:
    assert node_shares.count() == min(len(node_shares.nodes()), node_shares.MAX_NODES) >= 1


@pytest.mark.parametrize("nodes", [0, 17])
def test_a_number_of_nodes_that_no_machine_has_is_refused(nodes: int) -> None:
    with pytest.raises(ValueError, match=f"nodes={nodes} is outside 1..16"), pretended(nodes):
        pass
