#include "gemm_pack.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "weight_coder.h"

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

// One row of the weight: `kDepth` elements every kStripOutputs * kDepth of the strip. Where k ends
// within a pair, the other half is zero.
template <typename T>
void pack_row(T* strip, const T* row, int64_t k) {
  int64_t i = 0;
  for (; i + kDepth<T> <= k; i += kDepth<T>) {
    std::memcpy(strip + i * kStripOutputs, row + i, kDepth<T> * sizeof(T));
  }
  if (i == k) return;
  strip[i * kStripOutputs] = row[i];
  strip[i * kStripOutputs + 1] = T{};
}

// `kDepth` elements of either type are 32 bits, and a strip is those of its rows transposed.
using Words = uint32_t __attribute__((vector_size(16)));

// Four rows of the weight, `stride` apart, next to each other in the strip.
template <typename T>
void pack_four_rows(T* strip, const T* rows, int64_t stride, int64_t k) {
  constexpr int64_t kStep = 4 * kDepth<T>;
  constexpr int64_t kApart = kStripOutputs * kDepth<T>;
  int64_t i = 0;
  for (; i + kStep <= k; i += kStep) {
    Words row[4];
    for (int64_t r = 0; r < 4; ++r) std::memcpy(&row[r], rows + r * stride + i, sizeof(Words));
    const Words low02 = __builtin_shufflevector(row[0], row[2], 0, 4, 1, 5);
    const Words low13 = __builtin_shufflevector(row[1], row[3], 0, 4, 1, 5);
    const Words high02 = __builtin_shufflevector(row[0], row[2], 2, 6, 3, 7);
    const Words high13 = __builtin_shufflevector(row[1], row[3], 2, 6, 3, 7);
    const Words column[4] = {__builtin_shufflevector(low02, low13, 0, 4, 1, 5),
                             __builtin_shufflevector(low02, low13, 2, 6, 3, 7),
                             __builtin_shufflevector(high02, high13, 0, 4, 1, 5),
                             __builtin_shufflevector(high02, high13, 2, 6, 3, 7)};
    T* out = strip + i * kStripOutputs;
    for (int64_t c = 0; c < 4; ++c) std::memcpy(out + c * kApart, &column[c], sizeof(Words));
  }
  for (int64_t r = 0; r < 4; ++r) {
    pack_row(strip + i * kStripOutputs + r * kDepth<T>, rows + r * stride + i, k - i);
  }
}

// The outputs of a strip from `first` on.
template <typename T>
void clear_outputs(T* strip, int64_t first, int64_t k) {
  const int64_t size = (kStripOutputs - first) * kDepth<T>;
  for (int64_t i = 0; i < k; i += kDepth<T>) {
    std::memset(strip + i * kStripOutputs + first * kDepth<T>, 0, size * sizeof(T));
  }
}

template <typename T>
void unpack_row(T* row, const T* strip, int64_t k) {
  int64_t i = 0;
  for (; i + kDepth<T> <= k; i += kDepth<T>) {
    std::memcpy(row + i, strip + i * kStripOutputs, kDepth<T> * sizeof(T));
  }
  if (i < k) row[i] = strip[i * kStripOutputs];
}

// Rows [first, first + count) of a weight of n; with its last row, what is beyond n.
template <typename T>
void pack_rows_as(T* out, const T* rows, int64_t stride, int64_t first, int64_t count, int64_t n,
                  int64_t k) {
  const int64_t elements = strip_elements<T>(k), end = first + count;
  // Columns of k go in blocks: their part of the strip stays in the first-level cache.
  constexpr int64_t kBlock = 128;
  for (int64_t begin = first; begin < end;) {
    T* strip = out + begin / kStripOutputs * elements;
    const int64_t strip_end = std::min(end, begin / kStripOutputs * kStripOutputs + kStripOutputs);
    for (int64_t column = 0; column < k; column += kBlock) {
      const int64_t columns = std::min(kBlock, k - column);
      for (int64_t row = begin; row < strip_end;) {
        T* place = strip + column * kStripOutputs + row % kStripOutputs * kDepth<T>;
        const T* source = rows + (row - first) * stride + column;
        if (row + 4 <= strip_end) {
          pack_four_rows(place, source, stride, columns);
          row += 4;
        } else {
          pack_row(place, source, columns);
          row += 1;
        }
      }
    }
    begin = strip_end;
  }
  if (end == n && n % kStripOutputs) {
    clear_outputs(out + n / kStripOutputs * elements, n % kStripOutputs, k);
  }
}

// Has the system put pages behind memory that is about to be written, with one call for all of
// them; what it does not do is left to the faults of the writes.
void take_pages(void* begin, int64_t bytes) {
#ifdef MADV_POPULATE_WRITE
  constexpr uintptr_t kPage = 4096;
  const uintptr_t first = reinterpret_cast<uintptr_t>(begin) / kPage * kPage;
  const uintptr_t end = reinterpret_cast<uintptr_t>(begin) + bytes;
  madvise(reinterpret_cast<void*>(first), end - first, MADV_POPULATE_WRITE);
#endif
}

// The same into memory that may not have been touched: some strips at a time, whose zeroed pages
// the second-level cache still has when they are written.
template <typename T>
void pack_new_rows(T* out, const T* rows, int64_t stride, int64_t first, int64_t count, int64_t n,
                   int64_t k) {
  constexpr int64_t kTakenBytes = 256 << 10;
  const int64_t strip_bytes = strip_elements<T>(k) * sizeof(T);
  const int64_t step = std::max<int64_t>(1, kTakenBytes / strip_bytes) * kStripOutputs;
  for (int64_t begin = first, end = first + count; begin < end;) {
    const int64_t strip = begin / kStripOutputs;
    const int64_t stop = std::min(end, strip * kStripOutputs + step);
    const int64_t strips = (stop + kStripOutputs - 1) / kStripOutputs - strip;
    take_pages(out + strip * strip_elements<T>(k), strips * strip_bytes);
    pack_rows_as(out, rows + (begin - first) * stride, stride, begin, stop - begin, n, k);
    begin = stop;
  }
}

template <typename T>
void pack_as(T* out, const T* weight, int64_t stride, int64_t n, int64_t k, const Member& member) {
  const int64_t strips = (n + kStripOutputs - 1) / kStripOutputs;
  member.split(strips, 1, Repeats::kNo, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kStripOutputs;
    const int64_t count = std::min(end * kStripOutputs, n) - first;
    pack_rows_as(out, weight + first * stride, stride, first, count, n, k);
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

void pack_rows(void* out, const void* rows, int64_t stride, DType dtype, int64_t first,
               int64_t count, int64_t n, int64_t k) {
  if (dtype == DType::kBf16) {
    pack_new_rows(static_cast<bf16*>(out), static_cast<const bf16*>(rows), stride, first, count, n,
                  k);
  } else {
    pack_new_rows(static_cast<float*>(out), static_cast<const float*>(rows), stride, first, count,
                  n, k);
  }
}

void gather_rows(void* out, const int64_t* ids, int64_t count, const PackedMatrix& weight,
                 const Member& member) {
  const int64_t k = weight.k;
  if (weight.escapes) {
    member.split(count, 1, Repeats::kYes, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        gather_coded_row(static_cast<bf16*>(out) + i * k, weight, ids[i]);
      }
    });
  } else if (weight.dtype == DType::kBf16) {
    gather_as(static_cast<bf16*>(out), ids, count, static_cast<const bf16*>(weight.data), k,
              member);
  } else {
    gather_as(static_cast<float*>(out), ids, count, static_cast<const float*>(weight.data), k,
              member);
  }
}

}  // namespace rtp
