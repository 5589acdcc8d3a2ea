#include "gemm_pack.h"

#include <algorithm>
#include <cstring>

namespace rtp {
namespace {

template <typename T>
constexpr int64_t kDepth = 1;
template <>
constexpr int64_t kDepth<bf16> = 2;

template <typename T>
int64_t strip_elements(int64_t k) {
  return (k + kDepth<T> - 1) / kDepth<T> * kDepth<T> * kStripOutputs;
}

// One row of the weight: `kDepth` elements every kStripOutputs * kDepth of the strip.
template <typename T>
void pack_row(T* strip, const T* row, int64_t k) {
  int64_t i = 0;
  for (; i + kDepth<T> <= k; i += kDepth<T>) {
    std::memcpy(strip + i * kStripOutputs, row + i, kDepth<T> * sizeof(T));
  }
  if (i < k) std::memcpy(strip + i * kStripOutputs, row + i, sizeof(T));
}

template <typename T>
void unpack_row(T* row, const T* strip, int64_t k) {
  int64_t i = 0;
  for (; i + kDepth<T> <= k; i += kDepth<T>) {
    std::memcpy(row + i, strip + i * kStripOutputs, kDepth<T> * sizeof(T));
  }
  if (i < k) row[i] = strip[i * kStripOutputs];
}

template <typename T>
void pack_as(T* out, const T* weight, int64_t stride, int64_t n, int64_t k, const Member& member) {
  const int64_t strips = (n + kStripOutputs - 1) / kStripOutputs;
  const int64_t elements = strip_elements<T>(k);
  // Columns of k go in blocks: their part of the strip stays in the first-level cache.
  constexpr int64_t kBlock = 128;
  const auto pack_strip = [&](int64_t index) {
    T* strip = out + index * elements;
    const int64_t rows = std::min<int64_t>(kStripOutputs, n - index * kStripOutputs);
    if (rows < kStripOutputs || k % kDepth<T>) std::memset(strip, 0, elements * sizeof(T));
    for (int64_t first = 0; first < k; first += kBlock) {
      for (int64_t row = 0; row < rows; ++row) {
        pack_row(strip + first * kStripOutputs + row * kDepth<T>,
                 weight + (index * kStripOutputs + row) * stride + first,
                 std::min(kBlock, k - first));
      }
    }
  };
  member.split(strips, 1, Repeats::kNo, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) pack_strip(index);
  });
}

template <typename T>
void gather_as(T* out, const int64_t* ids, int64_t count, const T* packed, int64_t k,
               const Member& member) {
  const int64_t elements = strip_elements<T>(k);
  member.split(count, 1, Repeats::kYes, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* strip = packed + ids[i] / kStripOutputs * elements;
      unpack_row(out + i * k, strip + ids[i] % kStripOutputs * kDepth<T>, k);
    }
  });
}

}  // namespace

void pack(void* out, const void* weight, int64_t stride, DType dtype, int64_t n, int64_t k,
          const Member& member) {
  if (dtype == DType::kBf16) {
    pack_as(static_cast<bf16*>(out), static_cast<const bf16*>(weight), stride, n, k, member);
  } else {
    pack_as(static_cast<float*>(out), static_cast<const float*>(weight), stride, n, k, member);
  }
}

void gather_rows(void* out, const int64_t* ids, int64_t count, const PackedMatrix& weight,
                 const Member& member) {
  const int64_t k = weight.k;
  if (weight.dtype == DType::kBf16) {
    gather_as(static_cast<bf16*>(out), ids, count, static_cast<const bf16*>(weight.data), k,
              member);
  } else {
    gather_as(static_cast<float*>(out), ids, count, static_cast<const float*>(weight.data), k,
              member);
  }
}

}  // namespace rtp
