// What gated_delta_rule and gdn_update check and take of their tensors: heads, states, and which sequence owns which.
#pragma once
#include <vector>

#include "argument_checks.h"
#include "gated_delta_rule.h"
#include "widened.h"

namespace minimax_m2 {
namespace {

inline bool is_token_rows(const Tensor& x, ScalarType dtype, std::initializer_list<int64_t> sizes) {
  return x.scalar_type() == dtype && has_shape(x, sizes) && has_rows(x);
}

inline bool is_index_list(const Tensor& x, int64_t size) {
  return is_index(x) && has_shape(x, {size}) && x.is_contiguous();
}

// As schema/gated_delta_rule.py's check_heads says.
inline bool accepts_heads(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& state,
                          const Tensor& state_index, const Tensor& query_start, const Tensor& o) {
  if (!is_float(q) || !has_shape(q, {ANY, ANY, ANY}) || !has_rows(q) || v.dim() != 3) return false;
  const ScalarType dtype = q.scalar_type();
  const int64_t T = q.size(0), Hk = q.size(1), Dk = q.size(2), Hv = v.size(1), Dv = v.size(2);
  if (!within(Dk, 1, MAX_HEAD_DIM) || Hk < 1 || Hv < 1 || Dv < 1 || Hv % Hk) return false;
  const bool dense_heads = has_rows(state) && (state.dim() != 4 || Dk == 1 || state.stride(2) == Dv);
  return is_token_rows(k, dtype, {T, Hk, Dk}) && is_token_rows(v, dtype, {T, Hv, Dv}) &&
         state.scalar_type() == ScalarType::Float && has_shape(state, {ANY, Hv, Dk, Dv}) && dense_heads &&
         state_index.dim() == 1 && is_index_list(state_index, state_index.size(0)) &&
         is_index_list(query_start, state_index.size(0) + 1) && is_dense(o, dtype, {T, Hv, Dv});
}

inline void check_starts(const std::vector<int64_t>& query_start, int64_t num_tokens) {
  if (query_start.front() < 0 || query_start.back() > num_tokens) {
    reject("query_start runs from " + std::to_string(query_start.front()) + " to " +
           std::to_string(query_start.back()) + ", expected within 0.." + std::to_string(num_tokens) + ", the rows of q");
  }
  for (size_t b = 0; b + 1 < query_start.size(); ++b) {
    if (query_start[b + 1] < query_start[b]) {
      reject("query_start falls in sequence " + std::to_string(b) + "; expected rising positions");
    }
  }
}

inline void check_slots(const std::vector<int64_t>& slots, int64_t num_slots) {
  std::vector<bool> taken(static_cast<size_t>(num_slots));
  for (size_t b = 0; b < slots.size(); ++b) {
    const int64_t slot = slots[b];
    if (slot < 0) continue;
    const std::string named = "state_index[" + std::to_string(b) + "]=" + std::to_string(slot);
    if (slot >= num_slots) reject(named + " is outside the state's " + std::to_string(num_slots) + " slots; -1 pads");
    if (taken[slot]) reject(named + " is named twice; a state belongs to one sequence");
    taken[slot] = true;
  }
}

inline GatedDeltaRuleArgs::Heads heads_of(const Tensor& x) {
  return {.data = x.const_data_ptr(), .token_stride = x.stride(0), .head_stride = x.stride(1)};
}

// Which sequence owns which tokens and which state, checked before anything is written.
struct Sequences {
  std::vector<int64_t> slots, starts;
};

inline Sequences sequences_of(const Tensor& q, const Tensor& state, const Tensor& state_index,
                              const Tensor& query_start) {
  Sequences found{.slots = widened(state_index), .starts = widened(query_start)};
  check_starts(found.starts, q.size(0));
  check_slots(found.slots, state.size(0));
  return found;
}

// All but the gates.
inline GatedDeltaRuleArgs recurrence_args(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& state,
                                          const Sequences& sequences, double scale, bool l2norm, const Tensor& o) {
  return {.q = heads_of(q),
          .k = heads_of(k),
          .v = heads_of(v),
          .dtype = dtype_of(q),
          .g = nullptr,
          .g_stride = 0,
          .beta = nullptr,
          .beta_stride = 0,
          .beta_dtype = Dtype::float32,
          .state = static_cast<float*>(state.mutable_data_ptr()),
          .slot_stride = state.stride(0),
          .state_head_stride = state.stride(1),
          .state_index = sequences.slots.data(),
          .query_start = sequences.starts.data(),
          .o = o.mutable_data_ptr(),
          .num_tokens = q.size(0),
          .num_sequences = static_cast<int64_t>(sequences.slots.size()),
          .num_k_heads = q.size(1),
          .num_v_heads = v.size(1),
          .head_k_dim = q.size(2),
          .head_v_dim = v.size(2),
          .scale = static_cast<float>(scale),
          .l2norm = l2norm};
}

}  // namespace
}  // namespace minimax_m2
