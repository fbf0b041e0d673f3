// Registers attention for the CPU. Shapes and dtypes were checked by attention.py; lengths are checked here.
#include "attention.h"

#include "widened.h"

namespace minimax_m2 {
namespace {

double scalar_or_one(const std::optional<Tensor>& x) {
  if (!x.has_value()) return 1.0;
  return x->scalar_type() == ScalarType::Double ? *data_or_null<double>(x) : *data_or_null<float>(x);
}

void check_lengths(const std::vector<int64_t>& seq_lens, const std::vector<int64_t>& query_start, int64_t num_tokens,
                   int64_t room, int64_t max_query_len, int64_t max_seq_len) {
  const auto in_sequence = [](size_t b) { return " in sequence " + std::to_string(b); };
  if (query_start.front() < 0 || query_start.back() > num_tokens) {
    reject("query_start runs from " + std::to_string(query_start.front()) + " to " +
           std::to_string(query_start.back()) + ", expected within 0.." + std::to_string(num_tokens) + ", the rows of q");
  }
  for (size_t b = 0; b < seq_lens.size(); ++b) {
    const int64_t queries = query_start[b + 1] - query_start[b];
    if (queries < 0) reject("query_start falls" + in_sequence(b) + "; expected rising positions");
    if (queries > max_query_len) {
      reject(std::to_string(queries) + " queries" + in_sequence(b) + " exceed max_query_len=" +
             std::to_string(max_query_len));
    }
    if (seq_lens[b] < 0 || seq_lens[b] > max_seq_len) {
      reject("seq_lens=" + std::to_string(seq_lens[b]) + in_sequence(b) + " is outside 0..max_seq_len=" +
             std::to_string(max_seq_len));
    }
    if (seq_lens[b] > room) {
      reject("seq_lens=" + std::to_string(seq_lens[b]) + in_sequence(b) + " exceeds the " + std::to_string(room) +
             " slots of a block_table row");
    }
  }
}

PagedCache cache_of(const Tensor& x) {
  return {.data = x.const_data_ptr(),
          .page_stride = x.stride(0),
          .slot_stride = x.stride(1),
          .head_stride = x.stride(2)};
}

void attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& block_table,
               const Tensor& seq_lens, const Tensor& query_start, double scale, int64_t max_query_len,
               int64_t max_seq_len, std::optional<Tensor> k_scale, std::optional<Tensor> v_scale, Tensor out) {
  const std::vector<int64_t> lengths = widened(seq_lens), starts = widened(query_start);
  const int64_t page = k_cache.size(1);
  check_lengths(lengths, starts, q.size(0), block_table.size(1) * page, max_query_len, max_seq_len);
  const AttentionArgs args{.q = q.const_data_ptr(),
                           .q_token_stride = q.stride(0),
                           .q_head_stride = q.stride(1),
                           .dtype = dtype_of(q),
                           .k = cache_of(k_cache),
                           .v = cache_of(v_cache),
                           .cache_dtype = dtype_of(k_cache),
                           .block_table = block_table.const_data_ptr(),
                           .table_stride = block_table.stride(0),
                           .table_dtype = dtype_of(block_table),
                           .seq_lens = lengths.data(),
                           .query_start = starts.data(),
                           .out = out.mutable_data_ptr(),
                           .num_tokens = q.size(0),
                           .num_sequences = seq_lens.size(0),
                           .num_pages = k_cache.size(0),
                           .page = page,
                           .num_heads = q.size(1),
                           .num_kv_heads = k_cache.size(2),
                           .head_dim = q.size(2),
                           .score_factor = static_cast<float>(scale * scalar_or_one(k_scale)),
                           .value_factor = scalar_or_one(v_scale)};
  const int64_t bad = launch(attention_table, args);
  if (bad >= 0) {
    reject("block_table row " + std::to_string(bad) + " names a page outside 0.." +
           std::to_string(args.num_pages - 1) + " within the sequence's length " +
           std::to_string(lengths[static_cast<size_t>(bad)]));
  }
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) { m.impl("attention", TORCH_BOX(&minimax_m2::attention)); }
