// A packed weight as Python holds it: checked and bound once, not a call.
#pragma once

#include "array.h"
#include "screen.h"

namespace rtp {

// Keeps the memory of its arrays.
class LinearWeight {
 public:
  // Bias and screen may be missing; with escapes `packed` is coded strips.
  LinearWeight(const CpuArray& packed, const CpuArray& bias, int64_t n, int64_t k,
               const CpuArray& screen, const CpuArray& escapes);

  const Projection& projection() const { return projection_; }

  // Null: it has none.
  const Screen* screen() const { return screen_.data ? &screen_ : nullptr; }

  // Tensors come by address: exporting them by DLPack takes longer than a small product. The caller
  // has checked them.

  // x is [m, k] of the weight's type, out is [m, n] and contiguous, of that type or f32.
  void linear(uintptr_t out, bool is_out_f32, uintptr_t x, int64_t m, int64_t x_stride) const;

  // Of the norms of `rows` [m] of x [num_rows, k]; out is [m, n], f32.
  void logits(const CpuArray& out, uintptr_t x, int64_t num_rows, int64_t x_stride,
              const CpuArray& rows, uintptr_t norm_weight, float eps) const;

  // The ids [m] of the largest of these logits, or kNoToken. Returns how many strips of outputs
  // were computed for it.
  int64_t greedy(const CpuArray& out, uintptr_t x, int64_t num_rows, int64_t x_stride,
                 const CpuArray& rows, uintptr_t norm_weight, float eps) const;

  // What logits() multiplies, without its checks.
  Linear logits_product(float* out, const void* x, int64_t x_stride, const int64_t* rows, int64_t m,
                        const void* norm_weight, float eps) const;

  // out[i] = row ids[i] of the unpacked weight; out is [len(ids), k], of the weight's type.
  void gather_rows(uintptr_t out, const CpuArray& ids) const;

 private:
  Linear product(uintptr_t out, bool is_out_f32, uintptr_t x, int64_t m, int64_t x_stride) const;

  CpuArray packed_array_, bias_array_, screen_array_, escapes_array_;
  Projection projection_{};
  Screen screen_{};
};

// Throws ValueError unless all are from 0 to `limit` - 1.
void check_indices(const char* name, const int64_t* indices, int64_t count, int64_t limit);

}  // namespace rtp
