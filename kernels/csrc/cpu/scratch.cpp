#include "scratch.h"

#include <cstdlib>
#include <memory>
#include <new>

namespace rtp {
namespace {

struct Free {
  void operator()(float* memory) const { std::free(memory); }
};

struct Scratch {
  std::unique_ptr<float, Free> memory;
  int64_t floats = 0;
};

thread_local Scratch scratch;

}  // namespace

float* thread_scratch(int64_t floats) {
  if (floats > scratch.floats) {
    const int64_t rounded = (floats + 15) / 16 * 16;
    auto* memory = static_cast<float*>(std::aligned_alloc(64, rounded * sizeof(float)));
    if (!memory) throw std::bad_alloc();
    scratch.memory.reset(memory);
    scratch.floats = rounded;
  }
  return scratch.memory.get();
}

}  // namespace rtp
