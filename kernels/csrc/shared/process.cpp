#include "process.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace rtp {
namespace {

struct Status {
  char state;
  int64_t start;
};

// False if there is no such process.
bool read_status(int64_t pid, Status& status) {
  char path[32], text[1024];
  std::snprintf(path, sizeof path, "/proc/%lld/stat", static_cast<long long>(pid));
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return false;
  const ssize_t size = read(file, text, sizeof text - 1);
  close(file);
  if (size <= 0) return false;
  text[size] = 0;
  // The program's name may contain anything; state is the third field, start the twenty-second.
  const char* field = std::strrchr(text, ')');
  if (!field || !field[1]) return false;
  status.state = *(field += 2);
  for (int i = 3; i < 22; ++i) {
    field = std::strchr(field + 1, ' ');
    if (!field) return false;
  }
  status.start = std::strtoll(field, nullptr, 10);
  return true;
}

}  // namespace

Process Process::own() {
  Status status{};
  if (!read_status(getpid(), status)) throw std::runtime_error("cannot read /proc/PID/stat");
  return {getpid(), status.start};
}

bool Process::is_alive() const {
  Status status{};
  return read_status(pid, status) && status.start == start && status.state != 'Z' &&
         status.state != 'X';
}

}  // namespace rtp
