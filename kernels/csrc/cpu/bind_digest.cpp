// Binding of the copy that hashes.
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

nb::bytes py_digest_copy(nb::handle target_, nb::handle source_) {
  const Buffer target(target_, PyBUF_WRITABLE), source(source_, 0);
  const int64_t bytes = source.bytes();
  if (target.bytes() != bytes || bytes < kMinDigestBytes || bytes % kDigestLineBytes != 0) {
    throw nb::value_error(
        "digest_copy: target and source must be equally many bytes, in whole "
        "lines of 64, at least 256");
  }
  if (!target.is_aligned() || !source.is_aligned()) {
    throw nb::value_error("digest_copy: target and source must be aligned to 64 bytes");
  }
  const DigestCopy op{target.data(), source.data(), bytes};
  Digest digest;
  {
    const nb::gil_scoped_release release;
    digest = RTP_DISPATCH(digest_copy)(op);
  }
  unsigned char out[16];
  for (int i = 0; i < 8; ++i) {  // the most significant byte first
    out[i] = static_cast<unsigned char>(digest.high >> (56 - 8 * i));
    out[8 + i] = static_cast<unsigned char>(digest.low >> (56 - 8 * i));
  }
  return nb::bytes(out, sizeof out);
}

}  // namespace

void bind_digest(nb::module_& module) {
  module.def("digest_copy", &py_digest_copy, nb::arg("target"), nb::arg("source"));
}

}  // namespace rtp
