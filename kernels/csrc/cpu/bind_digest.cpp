// Binding of the copy that hashes.
#include <nanobind/stl/vector.h>

#include <deque>
#include <optional>
#include <vector>

#include "bindings.h"
#include "digest_copy.h"

namespace rtp {
namespace {

namespace nb = nanobind;

// A contiguous buffer of bytes, held.
class Buffer {
 public:
  Buffer(nb::handle object, int flags) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_SIMPLE | flags) != 0)
      nb::raise_python_error();
  }
  ~Buffer() { PyBuffer_Release(&view_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() const { return view_.buf; }
  int64_t bytes() const { return view_.len; }
  bool is_aligned() const { return reinterpret_cast<uintptr_t>(data()) % kDigestLineBytes == 0; }

 private:
  Py_buffer view_;
};

nb::bytes in_bytes(const Digest& digest) {
  unsigned char out[16];
  for (int i = 0; i < 8; ++i) {  // the most significant byte first
    out[i] = static_cast<unsigned char>(digest.high >> (56 - 8 * i));
    out[8 + i] = static_cast<unsigned char>(digest.low >> (56 - 8 * i));
  }
  return nb::bytes(out, sizeof out);
}

bool has_whole_lines(const Buffer& buffer) {
  return buffer.is_aligned() && buffer.bytes() >= kMinDigestBytes &&
         buffer.bytes() % kDigestLineBytes == 0;
}

// One digest for each target and its source. None, and nothing is copied, where these are not whole
// lines.
nb::list py_digest_copies(const std::vector<nb::object>& targets,
                          const std::vector<nb::object>& sources) {
  if (targets.size() != sources.size()) {
    throw nb::value_error("digest_copies: targets and sources must be equally many");
  }
  std::deque<Buffer> held;  // Their places do not change.
  std::vector<std::optional<DigestCopy>> copies;
  for (size_t i = 0; i < targets.size(); ++i) {
    const Buffer& target = held.emplace_back(targets[i], PyBUF_WRITABLE);
    const Buffer& source = held.emplace_back(sources[i], 0);
    if (target.bytes() != source.bytes()) {
      throw nb::value_error("digest_copies: target and source must be equally many bytes");
    }
    const bool is_whole = has_whole_lines(target) && has_whole_lines(source);
    if (is_whole) {
      copies.push_back(DigestCopy{target.data(), source.data(), source.bytes()});
    } else {
      copies.push_back(std::nullopt);
    }
  }
  std::vector<Digest> digests(copies.size());
  {
    const nb::gil_scoped_release release;
    const auto copy = RTP_DISPATCH(digest_copy);
    for (size_t i = 0; i < copies.size(); ++i) {
      if (copies[i]) digests[i] = copy(*copies[i]);
    }
  }
  nb::list found;
  for (size_t i = 0; i < copies.size(); ++i) {
    if (copies[i]) {
      found.append(in_bytes(digests[i]));
    } else {
      found.append(nb::none());
    }
  }
  return found;
}

}  // namespace

void bind_digest(nb::module_& module) {
  module.def("digest_copies", &py_digest_copies, nb::arg("targets"), nb::arg("sources"));
}

}  // namespace rtp
