// Binding of the read probe.
#include <nanobind/stl/string.h>

#include <atomic>
#include <string>

#include "array.h"
#include "bindings.h"
#include "read_probe.h"

namespace rtp {
namespace {

constexpr const char* kPrefetchNames[] = {"none", "t0", "t1", "nta"};

Prefetch prefetch_named(const std::string& name) {
  for (int i = 0; i < 4; ++i) {
    if (name == kPrefetchNames[i]) return static_cast<Prefetch>(i);
  }
  throw nb::value_error(
      ("read_memory: hint must be none, t0, t1 or nta, got '" + name + "'").c_str());
}

uint64_t py_read_memory(const CpuArray& words_, int64_t prefetch_bytes, const std::string& hint) {
  const Array words("read_memory", "words", words_);
  words.of(Scalar::kI64).shape({kAny}).contiguous();
  const ReadProbe op{words.data(), words.size(0) * 8, prefetch_bytes, prefetch_named(hint)};
  if (reinterpret_cast<uintptr_t>(op.data) % kProbeAlignment) {
    throw nb::value_error("read_memory: words must be aligned to 64 bytes");
  }
  std::atomic<uint64_t> total{0};
  const nb::gil_scoped_release release;
  run_team(true, [&](const Member& member) { RTP_DISPATCH(read_memory)(op, total, member); });
  return total;
}

}  // namespace

void bind_probe(nb::module_& module) {
  module.def("read_memory", &py_read_memory, nb::arg("words").noconvert(),
             nb::arg("prefetch_bytes"), nb::arg("hint"));
}

}  // namespace rtp
