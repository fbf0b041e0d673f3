// Top-k expert selection over a batch of logits. One token is one pass: score all experts, bound the k-th best choice from
// below by the k-th best column maximum, keep the few experts above the bound, and rank those against each other by
// counting. No step depends on the previous winner, so nothing serialises the way k rounds of arg-max would; and where one
// vector holds the columns, and one the experts above the bound, no branch hangs on the data.
#pragma once
#include <omp.h>
#include <type_traits>

#include "dispatch.h"
#include "routing.h"
#include "vector.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

constexpr int N = Float::N;

// Room for one token. A compressing store writes a whole vector, hence the extra N.
struct alignas(64) Scratch {
  float score[MAX_EXPERTS + N];      // what becomes the weight
  float choice[MAX_EXPERTS + N];     // score plus bias: what selects
  float candidate[MAX_EXPERTS + N];  // choices at or above the bound, in order of expert
  int32_t candidate_id[MAX_EXPERTS + N];
  int32_t rank[MAX_EXPERTS + N];
  int32_t by_rank[MAX_EXPERTS + N];  // candidates, best first
};

// rank[i] = how many of values[0..n) come before i: larger, or equal with a lower index. The order is total, so ranks
// are distinct. values must be readable up to the next multiple of N.
inline void rank_by_counting(const float* values, int n, int32_t* rank) {
  for (int i = 0; i < n; i += N) {
    const Float mine = load(values + i);
    Int count = set1_int(0);
    for (int j = 0; j < n; ++j) {
      const Float other = set1(values[j]);
      const Mask after = lt(set1_int(j - i), iota());
      count = blend(gt(other, mine) | (after & eq(other, mine)), count + set1_int(1), count);
    }
    store_int(rank + i, count);
  }
}

// The rank of each of N values among them, read at p: how many come before.
inline Int rank_of_vector(const float* p) {
  const Float mine = load(p);
  Int rank = set1_int(0);
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j) {
    const Float other = set1(p[j]);
    rank = blend(gt(other, mine) | (lt(set1_int(j), iota()) & eq(other, mine)), rank + set1_int(1), rank);
  }
  return rank;
}

// Fills score with sigmoid or softmax, choice with score + bias, and top with the maxima of N columns of choices; false if
// a choice is NaN.
template <class T>
inline bool score_experts(const RoutingArgs& args, const T* logits, Scratch& s, Float& top_choice) {
  const int num_experts = args.num_experts;
  Mask bad = first_lanes(0);
  top_choice = set1(-INFINITE);
  const auto choose = [&](int e, Float score, int lanes) {
    const Float bias = args.bias ? load(args.bias + e, lanes) : zero();
    const Float choice = blend(first_lanes(lanes), score + bias, set1(-INFINITE));
    bad = bad | is_nan(choice);
    top_choice = max(top_choice, choice);
    store(s.score + e, score);
    store(s.choice + e, choice);
  };
  const auto lanes = [&](int e) { return num_experts - e < N ? num_experts - e : N; };
  if (args.softmax) {
    Float top = set1(-INFINITE);
    for (int e = 0; e < num_experts; e += N) {
      const Mask real = first_lanes(lanes(e));
      top = max(top, blend(real, load(logits + e, lanes(e)), set1(-INFINITE)));
    }
    // A row of -inf scores 0 everywhere: no shift, and a divisor of 1 in place of the empty sum.
    const float highest = reduce_max(top);
    const Float shift = set1(highest == -INFINITE ? 0.0f : highest);
    // Four partial sums: short chains round less, and independent ones overlap.
    Float sum[4] = {zero(), zero(), zero(), zero()};
    for (int e = 0; e < num_experts; e += N) {
      const Float term = exp(load(logits + e, lanes(e)) - shift);
      sum[e / N % 4] = sum[e / N % 4] + blend(first_lanes(lanes(e)), term, zero());
      store(s.score + e, term);
    }
    const Float total = set1(highest == -INFINITE ? 1.0f : reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3])));
    for (int e = 0; e < num_experts; e += N) choose(e, load(s.score + e) / total, lanes(e));
  } else {
    int e = 0;
    for (; e + N <= num_experts; e += N) choose(e, sigmoid(load(logits + e)), N);
    if (e < num_experts) choose(e, sigmoid(load(logits + e, num_experts - e)), num_experts - e);
  }
  return bits(bad) == 0;
}

// The k-th largest of N values: the largest that k of them reach.
inline float kth_largest(Float values, int k) {
  alignas(64) float each[N];
  store(each, values);
  Int reached = set1_int(0);
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j) reached = blend(ge(set1(each[j]), values), reached + set1_int(1), reached);
  return reduce_max(blend(lt(set1_int(k - 1), reached), values, set1(-INFINITE)));
}

// The k-th largest column maximum: k experts, one per column, reach it, so the k-th best choice does too.
// Twice as many columns as k keep the number of experts above the bound near k.
inline float lower_bound(Scratch& s, int num_experts, int top_k) {
  const int vectors = (2 * top_k + N - 1) / N;
  const int columns = vectors * N;
  float* maxima = s.candidate;
  for (int c = 0; c < columns; c += N) {
    Float top = set1(-INFINITE);
    for (int e = c; e < num_experts; e += columns) top = max(top, load(s.choice + e));
    store(maxima + c, top);
  }
  rank_by_counting(maxima, columns, s.rank);
  const Int wanted = set1_int(top_k - 1);
  for (int c = 0; c < columns; c += N) {
    const uint32_t hit = bits(eq(load_int(s.rank + c), wanted));
    if (hit) return maxima[c + __builtin_ctz(hit)];
  }
  __builtin_unreachable();  // ranks are a permutation of the columns
}

template <class T, class Index>
inline bool route_token(const RoutingArgs& args, int64_t token, Scratch& s) {
  const T* logits = static_cast<const T*>(args.logits) + token * args.logits_stride;
  Float top;
  if (!score_experts(args, logits, s, top)) return false;

  const bool one_vector = 2 * args.top_k <= N;
  const Float bound = set1(one_vector ? kth_largest(top, args.top_k) : lower_bound(s, args.num_experts, args.top_k));
  int count = 0;
  for (int e = 0; e < args.num_experts; e += N) {
    const int lanes = args.num_experts - e < N ? args.num_experts - e : N;
    const Float choice = load(s.choice + e);
    const Mask keep = ge(choice, bound) & first_lanes(lanes);
    compress(s.candidate_id + count, keep, iota() + set1_int(e));
    count += compress(s.candidate + count, keep, choice);
  }
  if (count <= N) {
    store(s.candidate + count, set1(-INFINITE));
    const Int rank = rank_of_vector(s.candidate);
    for (int k = 0; k < args.top_k; ++k) s.by_rank[k] = s.candidate_id[__builtin_ctz(bits(eq(rank, set1_int(k))))];
  } else {
    // Every candidate is placed, those below the top k too: which they are is a coin toss, and a missed branch costs more.
    rank_by_counting(s.candidate, count, s.rank);
    for (int i = 0; i < count; ++i) s.by_rank[s.rank[i]] = s.candidate_id[i];
  }
  float chosen[MAX_TOP_K];
  Index* ids = static_cast<Index*>(args.ids) + token * args.top_k;
  for (int k = 0; k < args.top_k; ++k) {
    ids[k] = static_cast<Index>(s.by_rank[k]);
    chosen[k] = s.score[s.by_rank[k]];
  }
  // In double: near-equal weights would all round the float32 sum the same way, an error shared by the whole batch.
  double divisor = args.renormalize ? args.eps : 1.0;
  for (int k = 0; args.renormalize && k < args.top_k; ++k) divisor += chosen[k];
  const double factor = args.scale / divisor;
  float* weights = args.weights + token * args.top_k;
  for (int k = 0; k < args.top_k; ++k) weights[k] = static_cast<float>(chosen[k] * factor);
  return true;
}

// Routes tokens begin..end; returns the first bad one, or end.
template <class T, class Index>
inline int64_t route_tokens(const RoutingArgs& args, int64_t begin, int64_t end) {
  Scratch scratch;
  int64_t first_bad = end;
  for (int64_t token = begin; token < end; ++token) {
    if (!route_token<T, Index>(args, token, scratch) && first_bad == end) first_bad = token;
  }
  return first_bad;
}

template <class T, class Index>
inline int64_t route(const RoutingArgs& args) {
  const int64_t count = args.num_tokens;
  int64_t first_bad = count;
  if (serial_logits(count, args.num_experts)) {
    first_bad = route_tokens<T, Index>(args, 0, count);
  } else {
#pragma omp parallel reduction(min : first_bad)
    {
      const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
      const int64_t begin = count * thread / threads, end = count * (thread + 1) / threads;
      const int64_t bad = route_tokens<T, Index>(args, begin, end);
      first_bad = bad < end ? bad : count;
    }
  }
  return first_bad < count ? first_bad : -1;
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
