// The gated delta rule, up to four tokens of one sequence and value head at once. With D the decays' product so far:
//
//   read     k_c^T S and q_c^T S of all tokens in one pass over the state S from before them
//   correct  delta_c = beta_c * (v_c - D_c k_c^T S - sum over earlier e of D_c/D_e (k_c . k_e) delta_e), likewise o_c
//   write    S = D S + sum over c of D_last/D_c k_c delta_c, in a second pass, while the block is still cached
//
// Columns of S do not see each other, so a pass takes a block of them. Quotients of decays are products of those in
// between. Threads take whole heads.
#pragma once
#include <algorithm>
#include <type_traits>

#include "dispatch.h"
#include "gated_delta_rule.h"
#include "row_vectors.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

constexpr int N = Float::N;
constexpr int TOKENS = 4;  // at once
constexpr float EPS = 1e-6f;

// Tokens of one value head, their queries and keys in float32, and what they are to each other.
struct Chunk {
  float q[TOKENS][MAX_HEAD_DIM];
  float k[TOKENS][MAX_HEAD_DIM];
  float beta[TOKENS];
  float decayed[TOKENS];         // the product of the decays up to this token, its own included
  float key_key[TOKENS][TOKENS];    // (k_c . k_e) times the decays after e up to c
  float query_key[TOKENS][TOKENS];  // (q_c . k_e) likewise
  float remaining[TOKENS];       // the decays after this token
};

inline float dot_rows(const float* a, const float* b, int64_t count) {
  Float sum[2] = {zero(), zero()};
  int64_t i = 0;
  for (; i + 2 * N <= count; i += 2 * N) {
    sum[0] = fma(load(a + i), load(b + i), sum[0]);
    sum[1] = fma(load(a + i + N), load(b + i + N), sum[1]);
  }
  for_vectors(count - i, [&](int64_t rest, auto... n) {
    sum[0] = fma(load(a + i + rest, n...), load(b + i + rest, n...), sum[0]);
  });
  return reduce_add(sum[0] + sum[1]);
}

template <class T>
inline void widen(const T* from, int64_t count, float* to) {
  for_vectors(count, [&](int64_t i, auto... n) { store(to + i, load(from + i, n...), n...); });
}

inline void scale_row(float* x, int64_t count, float factor) {
  for_vectors(count, [&](int64_t i, auto... n) { store(x + i, load(x + i, n...) * set1(factor), n...); });
}

template <class T>
inline const T* row_of(const GatedDeltaRuleArgs::Heads& x, int64_t token, int64_t head) {
  return static_cast<const T*>(x.data) + token * x.token_stride + head * x.head_stride;
}

inline float beta_of(const GatedDeltaRuleArgs& args, int64_t token, int64_t head) {
  float value = 0.0f;
  with_float(args.beta_dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    value = to_float(static_cast<const T*>(args.beta)[token * args.beta_stride + head]);
  });
  return value;
}

template <class T>
inline void gather(const GatedDeltaRuleArgs& args, int64_t token, int count, int64_t head, Chunk& chunk) {
  const int64_t key_head = head / (args.num_v_heads / args.num_k_heads), D = args.head_k_dim;
  float decay[N] = {};
  for (int c = 0; c < count; ++c) {
    float *q = chunk.q[c], *k = chunk.k[c];
    widen(row_of<T>(args.q, token + c, key_head), D, q);
    widen(row_of<T>(args.k, token + c, key_head), D, k);
    if (args.l2norm) {
      scale_row(q, D, args.scale / std::sqrt(dot_rows(q, q, D) + EPS));
      scale_row(k, D, 1.0f / std::sqrt(dot_rows(k, k, D) + EPS));
    } else {
      scale_row(q, D, args.scale);
    }
    chunk.beta[c] = beta_of(args, token + c, head);
    decay[c] = args.g[(token + c) * args.g_stride + head];
  }
  store(decay, exp(load(decay)));
  for (int c = 0; c < count; ++c) {
    float between = 1.0f;
    chunk.query_key[c][c] = dot_rows(chunk.q[c], chunk.k[c], D);
    for (int e = c - 1; e >= 0; --e) {
      between *= decay[e + 1];
      chunk.key_key[c][e] = between * dot_rows(chunk.k[c], chunk.k[e], D);
      chunk.query_key[c][e] = between * dot_rows(chunk.q[c], chunk.k[e], D);
    }
    chunk.decayed[c] = between * decay[0];
  }
  chunk.remaining[count - 1] = 1.0f;
  for (int c = count - 1; c > 0; --c) chunk.remaining[c - 1] = chunk.remaining[c] * decay[c];
}

// VECTORS columns-wide vectors of the state, the last `lanes` of each kept: all, or VECTORS is 1.
template <int C, int VECTORS, class T>
[[gnu::always_inline]] inline void pass(const Chunk& chunk, int64_t depth, int64_t stride, int lanes,
                                        const T* const* v, float* state, T* const* o) {
  const auto fetch = [&](const auto* p, int i) { return VECTORS > 1 || lanes == N ? load(p + i * N) : load(p, lanes); };
  const auto put = [&](auto* p, int i, Float x) {
    if (VECTORS > 1 || lanes == N) {
      store(p + i * N, x);
    } else {
      store(p, x, lanes);
    }
  };
  Float key[C][VECTORS], query[C][VECTORS];
  for (int c = 0; c < C; ++c)
    for (int i = 0; i < VECTORS; ++i) key[c][i] = query[c][i] = zero();
  for (int64_t d = 0; d < depth; ++d) {
    Float s[VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < VECTORS; ++i) s[i] = fetch(state + d * stride, i);
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const Float kd = set1(chunk.k[c][d]), qd = set1(chunk.q[c][d]);
#pragma GCC unroll 8
      for (int i = 0; i < VECTORS; ++i) {
        key[c][i] = fma(kd, s[i], key[c][i]);
        query[c][i] = fma(qd, s[i], query[c][i]);
      }
    }
  }

  Float delta[C][VECTORS];
  for (int i = 0; i < VECTORS; ++i) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const Float decayed = set1(chunk.decayed[c]);
      Float read = decayed * key[c][i], out = decayed * query[c][i];
      for (int e = 0; e < c; ++e) {
        read = fma(set1(chunk.key_key[c][e]), delta[e][i], read);
        out = fma(set1(chunk.query_key[c][e]), delta[e][i], out);
      }
      delta[c][i] = (fetch(v[c], i) - read) * set1(chunk.beta[c]);
      put(o[c], i, fma(set1(chunk.query_key[c][c]), delta[c][i], out));
    }
    for (int c = 0; c < C; ++c) delta[c][i] = delta[c][i] * set1(chunk.remaining[c]);
  }

  const Float decayed = set1(chunk.decayed[C - 1]);
  for (int64_t d = 0; d < depth; ++d) {
    float* row = state + d * stride;
    Float s[VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < VECTORS; ++i) s[i] = fetch(row, i) * decayed;
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const Float kd = set1(chunk.k[c][d]);
#pragma GCC unroll 8
      for (int i = 0; i < VECTORS; ++i) s[i] = fma(kd, delta[c][i], s[i]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < VECTORS; ++i) put(row, i, s[i]);
  }
}

// As many columns at once as the registers hold: two sums a token and vector.
constexpr int vectors_of(int tokens) { return N == 16 ? (tokens == 1 ? 8 : tokens == 2 ? 4 : 2) : tokens <= 2 ? 2 : 1; }

template <int C, class T>
inline void run(const GatedDeltaRuleArgs& args, const Chunk& chunk, int64_t token, int64_t head, float* state) {
  constexpr int VECTORS = vectors_of(C);
  const int64_t width = args.head_v_dim;
  const T* v[C];
  T* o[C];
  for (int64_t j = 0; j < width;) {
    for (int c = 0; c < C; ++c) {
      v[c] = row_of<T>(args.v, token + c, head) + j;
      o[c] = static_cast<T*>(args.o) + ((token + c) * args.num_v_heads + head) * width + j;
    }
    if (j + VECTORS * N <= width) {
      pass<C, VECTORS>(chunk, args.head_k_dim, width, N, v, state + j, o);
      j += VECTORS * N;
    } else {
      const int lanes = static_cast<int>(std::min<int64_t>(N, width - j));
      pass<C, 1>(chunk, args.head_k_dim, width, lanes, v, state + j, o);
      j += lanes;
    }
  }
}

template <class T>
inline void run_head(const GatedDeltaRuleArgs& args, int64_t sequence, int64_t head) {
  const int64_t end = args.query_start[sequence + 1];
  float* state = args.state + args.state_index[sequence] * args.slot_stride + head * args.state_head_stride;
  Chunk chunk;
  for (int64_t token = args.query_start[sequence]; token < end; token += TOKENS) {
    const int count = static_cast<int>(std::min<int64_t>(TOKENS, end - token));
    gather<T>(args, token, count, head, chunk);
    switch (count) {
      case 1: run<1, T>(args, chunk, token, head, state); break;
      case 2: run<2, T>(args, chunk, token, head, state); break;
      case 3: run<3, T>(args, chunk, token, head, state); break;
      default: run<4, T>(args, chunk, token, head, state);
    }
  }
}

// Rows that no sequence with a state owns.
template <class T>
inline void clear(const GatedDeltaRuleArgs& args) {
  const int64_t row = args.num_v_heads * args.head_v_dim;
  const auto fill = [&](int64_t begin, int64_t end) {
    // Not memset, which a batch without tokens would hand no address.
    std::fill_n(static_cast<T*>(args.o) + begin * row, (end - begin) * row, T{});
  };
  fill(0, args.query_start[0]);
  fill(args.query_start[args.num_sequences], args.num_tokens);
  for (int64_t b = 0; b < args.num_sequences; ++b)
    if (args.state_index[b] < 0) fill(args.query_start[b], args.query_start[b + 1]);
}

inline void run_sequences(const GatedDeltaRuleArgs& args) {
  const int64_t items = args.num_sequences * args.num_v_heads;
  const int64_t elements = args.num_tokens * args.num_v_heads * args.head_k_dim * args.head_v_dim;
  // A token multiplies an element of its state by its key, query and decay, and its key by the correction.
  const bool alone = serial_products(4 * elements);
  with_float(args.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    clear<T>(args);
    const auto run_item = [&](int64_t item) {
      const int64_t sequence = item / args.num_v_heads;
      if (args.state_index[sequence] >= 0) run_head<T>(args, sequence, item % args.num_v_heads);
    };
    if (alone) {
      for (int64_t item = 0; item < items; ++item) run_item(item);
      return;
    }
#pragma omp parallel for schedule(dynamic)
    for (int64_t item = 0; item < items; ++item) run_item(item);
  });
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
