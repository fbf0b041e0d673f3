// Keys and values into their slots: one pass; copied where the formats agree.
#include "kv_cache.h"

#include <type_traits>

#include "cache_entry.h"
#include "token_loop.h"
#include "vector.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

template <class T, class Cache>
inline void write_token(const KvCacheArgs& args, int64_t token) {
  if (args.slots.slots[token] < 0) return;
  const int D = args.head_dim;
  for (const auto& part : args.parts) {
    const T* x = static_cast<const T*>(part.x) + token * part.token_stride;
    Cache* out = entry_of<Cache>(part.cache, args.slots, token);
    // Heads that touch on both sides are one run.
    const bool dense = part.head_stride == D && part.cache.head_stride == D;
    const int runs = dense ? 1 : args.num_kv_heads, length = dense ? args.num_kv_heads * D : D;
    for (int run = 0; run < runs; ++run) {
      write_entry(x + run * part.head_stride, length, part.scaled, part.scale, out + run * part.cache.head_stride);
    }
  }
}

}  // namespace

int64_t kv_cache(const KvCacheArgs& args) {
  const int64_t bad = first_past(args.slots, args.num_tokens);
  if (bad >= 0) return bad;
  const int64_t values = 2ll * args.num_kv_heads * args.head_dim;
  with_float(args.dtype, [&](auto* value) {
    with_cache(args.cache_dtype, [&](auto* entry) {
      using T = std::remove_pointer_t<decltype(value)>;
      using Cache = std::remove_pointer_t<decltype(entry)>;
      for_tokens(args.num_tokens, values, [&](int64_t token) { write_token<T, Cache>(args, token); });
    });
  });
  return -1;
}

}  // namespace minimax_m2::MINIMAX_M2_ISA
