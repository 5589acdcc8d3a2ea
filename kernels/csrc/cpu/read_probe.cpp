#include "read_probe.h"

#define RTP_INLINE static inline __attribute__((always_inline))

namespace rtp::RTP_ISA_NAMESPACE {

// One cache line: a register where the level has one so wide, else several.
typedef uint64_t Line __attribute__((vector_size(64)));

constexpr int64_t kLinesAtOnce = 8;
constexpr int64_t kStretch = kLinesAtOnce * sizeof(Line);

template <Prefetch kPrefetch>
RTP_INLINE void prefetch(const char* address) {
  if constexpr (kPrefetch == Prefetch::kT0) __builtin_prefetch(address, 0, 3);
  if constexpr (kPrefetch == Prefetch::kT1) __builtin_prefetch(address, 0, 2);
  if constexpr (kPrefetch == Prefetch::kNta) __builtin_prefetch(address, 0, 0);
}

// Whole stretches. One sum a line, so that no addition waits for another.
template <Prefetch kPrefetch>
static uint64_t sum_stretches(const char* from, const char* to, int64_t ahead) {
  Line sums[kLinesAtOnce] = {};
  for (; from < to; from += kStretch) {
    const Line* lines = reinterpret_cast<const Line*>(from);
    for (int64_t i = 0; i < kLinesAtOnce; ++i) {
      prefetch<kPrefetch>(from + ahead + i * static_cast<int64_t>(sizeof(Line)));
      sums[i] += lines[i];
    }
  }
  uint64_t total = 0;
  for (const Line& sum : sums) {
    for (int lane = 0; lane < 8; ++lane) total += sum[lane];
  }
  return total;
}

static uint64_t sum_between(const ReadProbe& op, const char* from, const char* to) {
  switch (op.prefetch) {
    case Prefetch::kNone:
      return sum_stretches<Prefetch::kNone>(from, to, 0);
    case Prefetch::kT0:
      return sum_stretches<Prefetch::kT0>(from, to, op.prefetch_bytes);
    case Prefetch::kT1:
      return sum_stretches<Prefetch::kT1>(from, to, op.prefetch_bytes);
    case Prefetch::kNta:
      return sum_stretches<Prefetch::kNta>(from, to, op.prefetch_bytes);
  }
  return 0;
}

void read_memory(const ReadProbe& op, std::atomic<uint64_t>& total, const Member& member) {
  const char* data = static_cast<const char*>(op.data);
  const int64_t stretches = op.bytes / kStretch;
  member.split(stretches, 1, Repeats::kNo, [&](int64_t begin, int64_t end) {
    total += sum_between(op, data + begin * kStretch, data + end * kStretch);
  });
  if (member.index() > 0) return;
  const uint64_t* rest = reinterpret_cast<const uint64_t*>(data + stretches * kStretch);
  for (int64_t i = 0; i < op.bytes % kStretch / 8; ++i) total += rest[i];
}

}  // namespace rtp::RTP_ISA_NAMESPACE
