// Weights into the packed layout of gemm.h, and rows out of it. No arithmetic.
#pragma once

#include "gemm.h"

namespace rtp {

// `weight` is [n, k] with rows `stride` apart; `out` has the layout's size.
void pack(void* out, const void* weight, int64_t stride, DType dtype, int64_t n, int64_t k,
          const Member& member);

// Rows [first, first + count) of that weight alone, on the calling thread. Threads may pack other
// rows of it meanwhile. Each row writes its own elements, the last one those beyond n as well.
void pack_rows(void* out, const void* rows, int64_t stride, DType dtype, int64_t first,
               int64_t count, int64_t n, int64_t k);

// out[i] = row ids[i] of the unpacked weight; out is [count, k]. Each id is in [0, n).
void gather_rows(void* out, const int64_t* ids, int64_t count, const PackedMatrix& weight,
                 const Member& member);

}  // namespace rtp
