// A file of shared memory, mapped for as long as this lives. Fresh ones are zero.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rtp {

class Mapping {
 public:
  // Throws std::invalid_argument if the file has not `bytes`, std::system_error if it cannot be
  // mapped. The descriptor remains the caller's.
  Mapping(int descriptor, int64_t bytes);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  template <typename T>
  T* at(int64_t offset) const {
    return reinterpret_cast<T*>(data_ + offset);
  }

 private:
  char* data_;
  const size_t bytes_;
};

}  // namespace rtp
