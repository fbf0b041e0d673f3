// Rows of the embedding table: a copy in whole registers, or zeros for an id of another shard.
#include "embedding.h"

#include <cstring>

#include "token_loop.h"
#include "vector.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

// Two registers at a time; integer moves keep every bit, NaN payloads included.
inline void copy_row(const char* from, char* to, int64_t bytes) {
  constexpr int64_t WIDTH = Float::N * sizeof(int32_t);
  int64_t i = 0;
  if ((reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to)) % alignof(int32_t) == 0) {
    for (; i + 2 * WIDTH <= bytes; i += 2 * WIDTH) {
      const Int first = load_int(reinterpret_cast<const int32_t*>(from + i));
      const Int second = load_int(reinterpret_cast<const int32_t*>(from + i + WIDTH));
      store_int(reinterpret_cast<int32_t*>(to + i), first);
      store_int(reinterpret_cast<int32_t*>(to + i + WIDTH), second);
    }
  }
  std::memcpy(to + i, from + i, bytes - i);
}

}  // namespace

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
