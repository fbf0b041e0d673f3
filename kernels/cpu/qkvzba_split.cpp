// Six runs a group of heads, each copied in whole registers; four where q, k and v stay together.
#include "qkvzba_split.h"

#include "copy_row.h"
#include "token_loop.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

// The gates of one key head: two values mostly, for which a call would cost more than the copy.
inline void copy_gates(const char* from, char* to, int64_t bytes) {
  if (bytes == 4) {
    std::memcpy(to, from, 4);
  } else {
    copy_row(from, to, bytes);
  }
}

inline void split_token(const QkvzbaSplitArgs& args, int64_t token) {
  const int64_t key = args.key_bytes, value = args.value_bytes, gate = args.gate_bytes, groups = args.groups;
  const char* from = args.qkvz + token * args.qkvz_stride_bytes;
  const char* gates = args.ba + token * args.ba_stride_bytes;
  char* qkv = args.qkv + token * groups * (2 * key + value);
  char* z = args.z + token * groups * value;
  char* b = args.b + token * groups * gate;
  char* a = args.a + token * groups * gate;
  if (groups == 1) {
    copy_row(from, qkv, 2 * key + value);
    copy_row(from + 2 * key + value, z, value);
  } else {
    char *k = qkv + groups * key, *v = k + groups * key;
    for (int64_t group = 0; group < groups; ++group, from += 2 * (key + value)) {
      copy_row(from, qkv + group * key, key);
      copy_row(from + key, k + group * key, key);
      copy_row(from + 2 * key, v + group * value, value);
      copy_row(from + 2 * key + value, z + group * value, value);
    }
  }
  for (int64_t group = 0; group < groups; ++group, gates += 2 * gate) {
    copy_gates(gates, b + group * gate, gate);
    copy_gates(gates + gate, a + group * gate, gate);
  }
}

}  // namespace

void qkvzba_split(const QkvzbaSplitArgs& args) {
  const int64_t values = args.groups * (args.key_bytes + args.value_bytes);
  for_tokens(args.num_tokens, values, [&](int64_t token) { split_token(args, token); });
}

}  // namespace minimax_m2::MINIMAX_M2_ISA
