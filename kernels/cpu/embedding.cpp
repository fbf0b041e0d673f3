// Rows of the embedding table: a copy in whole registers, or zeros for an id of another shard.
#include "embedding.h"

#include <cstring>

#include "copy_row.h"
#include "token_loop.h"

namespace minimax_m2::MINIMAX_M2_ISA {

void embedding(const EmbeddingArgs& args) {
  with_index(args.ids_dtype, [&](auto* tag) {
    const auto* ids = static_cast<const std::remove_pointer_t<decltype(tag)>*>(args.ids);
    for_tokens(args.num_tokens, args.row_bytes / 2, [&](int64_t token) {
      // Compared before it is an address: an id of another shard has no row here.
      const int64_t row = static_cast<int64_t>(ids[token]) - args.vocab_start;
      char* out = args.out + token * args.row_bytes;
      if (row >= 0 && row < args.num_rows) {
        copy_row(args.weight + row * args.weight_stride_bytes, out, args.row_bytes);
      } else {
        std::memset(out, 0, args.row_bytes);
      }
    });
  });
}

}  // namespace minimax_m2::MINIMAX_M2_ISA
