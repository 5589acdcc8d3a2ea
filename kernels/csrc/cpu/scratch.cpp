#include "scratch.h"

#include <cstdlib>
#include <memory>
#include <new>

namespace rtp {
namespace {

struct Free {
  void operator()(char* memory) const { std::free(memory); }
};

// Grows, and is never given back.
class Kept {
 public:
  char* at_least(int64_t bytes) {
    if (bytes > size_) {
      const int64_t rounded = (bytes + 63) / 64 * 64;
      memory_.reset();
      size_ = 0;
      memory_.reset(static_cast<char*>(std::aligned_alloc(64, rounded)));
      if (!memory_) throw std::bad_alloc();
      size_ = rounded;
    }
    return memory_.get();
  }

 private:
  std::unique_ptr<char, Free> memory_;
  int64_t size_ = 0;
};

thread_local Kept own, shared;

}  // namespace

float* thread_scratch(int64_t floats) {
  return reinterpret_cast<float*>(own.at_least(floats * static_cast<int64_t>(sizeof(float))));
}

char* call_memory(int64_t bytes) { return shared.at_least(bytes); }

}  // namespace rtp
