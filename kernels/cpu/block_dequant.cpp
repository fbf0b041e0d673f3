// Dequantises e4m3 weights: one product a value, its scale held in a register along the columns of a block.
#include "block_dequant.h"

#include <algorithm>
#include <type_traits>

#include "row_vectors.h"
#include "token_loop.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

template <class T>
inline void dequantise(const BlockDequantArgs& args) {
  const int64_t grid_rows = (args.rows + args.block_rows - 1) / args.block_rows;
  const int64_t grid_columns = (args.columns + args.block_columns - 1) / args.block_columns;
  for_tokens(args.batches * args.rows, args.columns, [&](int64_t line) {
    const int64_t batch = line / args.rows, row = line % args.rows;
    const Float8* q = args.q + batch * args.batch_stride + row * args.row_stride;
    const float* scale = args.scale + (batch * grid_rows + row / args.block_rows) * grid_columns;
    T* w = static_cast<T*>(args.w) + line * args.columns;
    for (int64_t block = 0; block < grid_columns; ++block) {
      const int64_t first = block * args.block_columns;
      const Float factor = set1(scale[block]);
      for_vectors(std::min(args.block_columns, args.columns - first), [&](int64_t i, auto... n) {
        store(w + first + i, load(q + first + i, n...) * factor, n...);
      });
    }
  });
}

}  // namespace

void block_dequant(const BlockDequantArgs& args) {
  with_float(args.dtype, [&](auto* tag) { dequantise<std::remove_pointer_t<decltype(tag)>>(args); });
}

}  // namespace minimax_m2::MINIMAX_M2_ISA
