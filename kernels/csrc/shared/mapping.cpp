#include "mapping.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <stdexcept>
#include <string>
#include <system_error>

namespace rtp {

Mapping::Mapping(int descriptor, int64_t bytes) : bytes_(static_cast<size_t>(bytes)) {
  struct stat status;
  if (fstat(descriptor, &status) != 0) throw std::system_error(errno, std::generic_category());
  if (status.st_size != bytes) {
    throw std::invalid_argument("the shared file has " + std::to_string(status.st_size) +
                                " bytes, not " + std::to_string(bytes) +
                                ": others have joined it with other sizes");
  }
  void* data = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (data == MAP_FAILED) throw std::system_error(errno, std::generic_category());
  data_ = static_cast<char*>(data);
}

Mapping::~Mapping() { munmap(data_, bytes_); }

}  // namespace rtp
