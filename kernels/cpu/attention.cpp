// Causal attention with grouped queries over a paged cache. One item of work is a few queries of one sequence under one
// key/value head, so a key is read once for all heads of its group. Blocks of keys pass by; each row keeps the maximum
// and the sum of its weights so far and rescales them when the maximum grows. bf16 scores go through dot(); everything
// between the dtypes of q and out is float32, the weights too.
#include "attention.h"

#include <vector>

#include "row_products.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

constexpr int N = Float::N;
constexpr int KEYS = 64;  // in a block
// Rows of one item, unless a single query has more heads in its group: enough to read a key rarely from far away.
constexpr int64_t ITEM_ROWS = 48;
constexpr int VALUE_VECTORS = 4;  // in a register block

struct Item {
  int64_t sequence;
  int64_t kv_head;
  int64_t first_query;  // within the sequence
  int64_t queries;
};

// What one thread needs for one item; sizes in elements.
template <class T>
struct Scratch {
  Scratch(int64_t rows, int64_t head_dim)
      : score(rows * KEYS), sum(rows * head_dim), top(rows), total(rows), decay(rows), expanded(2 * KEYS * head_dim) {}
  std::vector<float> score;  // [rows, KEYS], then the weights
  std::vector<float> sum;    // [rows, D], of weighted values
  std::vector<float> top;    // largest score so far
  std::vector<float> total;  // sum of the weights so far
  std::vector<float> decay;  // what the block's new maximum does to the sums before it
  std::vector<T> expanded;   // keys and values of e4m3 caches
  const T* key[KEYS];
  const T* value[KEYS];
};

// Points at the rows of one cache for keys first..first+count; e4m3 rows are expanded, which is exact.
template <class T, class Index>
inline void gather(const AttentionArgs& args, const PagedCache& cache, const Index* table, int64_t kv_head,
                   int64_t first, int count, T* expanded, const T** rows) {
  for (int j = 0; j < count; ++j) {
    const int64_t key = first + j;
    const int64_t offset = table[key / args.page] * cache.page_stride + key % args.page * cache.slot_stride +
                           kv_head * cache.head_stride;
    if (args.cache_dtype != Dtype::float8_e4m3) {
      rows[j] = static_cast<const T*>(cache.data) + offset;
      continue;
    }
    const Float8* codes = static_cast<const Float8*>(cache.data) + offset;
    T* row = expanded + j * args.head_dim;
    int64_t d = 0;
    for (; d + N <= args.head_dim; d += N) store(row + d, load(codes + d));
    const int rest = static_cast<int>(args.head_dim - d);
    if (rest > 0) store(row + d, load(codes + d, rest), rest);
    rows[j] = row;
  }
}

// score[r][j] = factor * q[r] . key[j]
template <int R, class T>
inline void score_keys(const T* const (&q)[R], const T* const* key, int count, int64_t head_dim, float factor,
                       float* score) {
  constexpr int C = block_columns(R);
  for (int j = 0; j < count; j += C) {
    const T* column[C];
    for (int c = 0; c < C; ++c) column[c] = key[std::min(j + c, count - 1)];
    Float sum[R][C];
    clear(sum);
    add_products(sum, q, column, 0, head_dim);
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < std::min(C, count - j); ++c) score[r * KEYS + j + c] = reduce_add(sum[r][c]) * factor;
  }
}

// Turns the first `seen` scores of a row into weights under the row's new maximum, the others into 0.
inline void weigh(float* score, int seen, int count, float& top, float& total, float& decay) {
  Float highest = set1(top);
  for (int j = 0; j < seen; j += N) {
    const Float s = load(score + j, std::min(N, seen - j));
    // max returns its second operand where either is NaN, so a NaN score reaches the exponential below.
    highest = max(blend(first_lanes(std::min(N, seen - j)), s, set1(-INFINITE)), highest);
  }
  const float peak = reduce_max(highest);
  const float shift = peak == -INFINITE ? 0.0f : peak;
  float first_of[N];
  store(first_of, exp(set1(top - shift)));
  decay = first_of[0];
  top = peak;
  Float sum = zero();
  for (int j = 0; j < count; j += N) {
    const int lanes = std::min(N, count - j);
    const Float weight = exp(load(score + j, lanes) - set1(shift));
    const Float kept = blend(lt(iota() + set1_int(j), set1_int(seen)), weight, zero());
    sum = sum + kept;
    store(score + j, kept, lanes);
  }
  total = total * decay + reduce_add(sum);
}

// sum[r][d..] = sum[r][d..] * decay[r] + weights[r] . values[:, d..], over VECTORS vectors; the last has `lanes` lanes.
template <int R, int VECTORS, class T>
inline void add_values(const float* weight, const T* const* value, int count, int64_t d, int lanes, int64_t head_dim,
                       const float* decay, float* sum) {
  Float acc[R][VECTORS];
  clear(acc);
  for (int j = 0; j < count; ++j) {
    Float v[VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < VECTORS; ++i) v[i] = lanes == N ? load(value[j] + d + i * N) : load(value[j] + d, lanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Float w = set1(weight[r * KEYS + j]);
#pragma GCC unroll 8
      for (int i = 0; i < VECTORS; ++i) acc[r][i] = fma(w, v[i], acc[r][i]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < VECTORS; ++i) {
      float* p = sum + r * head_dim + d + i * N;
      store(p, fma(load(p, lanes), set1(decay[r]), acc[r][i]), lanes);
    }
  }
}

template <class T, class Index>
inline void attend(const AttentionArgs& args, const Item& item, Scratch<T>& s) {
  const int64_t group = args.num_heads / args.num_kv_heads, rows = item.queries * group, D = args.head_dim;
  const int64_t start = args.query_start[item.sequence];
  const int64_t length = args.seq_lens[item.sequence];
  const int64_t before = length - (args.query_start[item.sequence + 1] - start) + item.first_query;
  const auto* table = static_cast<const Index*>(args.block_table) + item.sequence * args.table_stride;
  const auto place = [&](int64_t r, int64_t token_stride, int64_t head_stride) {
    return (start + item.first_query + r / group) * token_stride + (item.kv_head * group + r % group) * head_stride;
  };
  std::fill_n(s.sum.begin(), rows * D, 0.0f);
  std::fill_n(s.total.begin(), rows, 0.0f);
  std::fill_n(s.top.begin(), rows, -INFINITE);

  // The causal edge is aligned to the end: the item's last query sees this many keys.
  const int64_t keys = std::min(length, before + item.queries);
  for (int64_t first = 0; first < keys; first += KEYS) {
    const int count = static_cast<int>(std::min<int64_t>(KEYS, keys - first));
    gather(args, args.k, table, item.kv_head, first, count, s.expanded.data(), s.key);
    gather(args, args.v, table, item.kv_head, first, count, s.expanded.data() + KEYS * D, s.value);
    for (int64_t r = 0; r < rows;) {
      const int64_t strips = (rows - r + BLOCK_ROWS - 1) / BLOCK_ROWS;
      const int height = static_cast<int>((rows - r + strips - 1) / strips);
      with_rows(height, [&](auto number) {
        constexpr int R = decltype(number)::value;
        const T* q[R];
        for (int i = 0; i < R; ++i)
          q[i] = static_cast<const T*>(args.q) + place(r + i, args.q_token_stride, args.q_head_stride);
        float* score = s.score.data() + r * KEYS;
        score_keys<R>(q, s.key, count, D, args.score_factor, score);
        for (int i = 0; i < R; ++i) {
          const int64_t seen = std::clamp<int64_t>(before + (r + i) / group + 1 - first, 0, count);
          weigh(score + i * KEYS, static_cast<int>(seen), count, s.top[r + i], s.total[r + i], s.decay[r + i]);
        }
        const float* decay = s.decay.data() + r;
        float* sum = s.sum.data() + r * D;
        int64_t d = 0;
        for (; d + VALUE_VECTORS * N <= D; d += VALUE_VECTORS * N)
          add_values<R, VALUE_VECTORS>(score, s.value, count, d, N, D, decay, sum);
        for (; d < D; d += N)
          add_values<R, 1>(score, s.value, count, d, static_cast<int>(std::min<int64_t>(N, D - d)), D, decay, sum);
      });
      r += height;
    }
  }

  for (int64_t r = 0; r < rows; ++r) {
    T* out = static_cast<T*>(args.out) + place(r, args.num_heads * D, D);
    // A row without keys has no weights: its sum is 0 and stays 0.
    const Float factor = set1(s.total[r] == 0.0f ? 0.0f : static_cast<float>(args.value_factor / s.total[r]));
    for (int64_t d = 0; d < D; d += N) {
      const int lanes = static_cast<int>(std::min<int64_t>(N, D - d));
      store(out + d, load(s.sum.data() + r * D + d, lanes) * factor, lanes);
    }
  }
}

template <class Index>
inline int64_t first_bad_sequence(const AttentionArgs& args) {
  for (int64_t b = 0; b < args.num_sequences; ++b) {
    const auto* table = static_cast<const Index*>(args.block_table) + b * args.table_stride;
    for (int64_t p = 0; p * args.page < args.seq_lens[b]; ++p)
      if (table[p] < 0 || table[p] >= args.num_pages) return b;
  }
  return -1;
}

std::vector<Item> split(const AttentionArgs& args, int64_t item_queries) {
  std::vector<Item> items;
  for (int64_t b = 0; b < args.num_sequences; ++b) {
    const int64_t queries = args.query_start[b + 1] - args.query_start[b];
    for (int64_t head = 0; head < args.num_kv_heads; ++head)
      for (int64_t q = 0; q < queries; q += item_queries)
        items.push_back({b, head, q, std::min(item_queries, queries - q)});
  }
  return items;
}

}  // namespace

int64_t attention(const AttentionArgs& args) {
  const int64_t group = args.num_heads / args.num_kv_heads, row = args.num_heads * args.head_dim;
  const int64_t item_queries = std::max<int64_t>(1, ITEM_ROWS / group);
  int64_t bad = -1;
  with_index(args.table_dtype, [&](auto* index_tag) {
    using Index = std::remove_pointer_t<decltype(index_tag)>;
    bad = first_bad_sequence<Index>(args);
    if (bad >= 0) return;
    with_float(args.dtype, [&](auto* tag) {
      using T = std::remove_pointer_t<decltype(tag)>;
      T* out = static_cast<T*>(args.out);
      const int64_t begin = args.query_start[0], end = args.query_start[args.num_sequences];
      std::memset(out, 0, static_cast<size_t>(begin * row) * sizeof(T));
      std::memset(out + end * row, 0, static_cast<size_t>((args.num_tokens - end) * row) * sizeof(T));
      const std::vector<Item> items = split(args, item_queries);
#pragma omp parallel if (items.size() > 1)
      {
        Scratch<T> scratch(item_queries * group, args.head_dim);
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < items.size(); ++i) attend<T, Index>(args, items[i], scratch);
      }
    });
  });
  return bad;
}

}  // namespace minimax_m2::MINIMAX_M2_ISA
