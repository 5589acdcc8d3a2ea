// An array from Python, held. The buffer protocol is several times as fast as DLPack, and a
// decision of the Master passes a handful of arrays.
#pragma once

#include <nanobind/nanobind.h>

#include <string>
#include <type_traits>

namespace rtp {

namespace nb = nanobind;

// Contiguous doubles or 64-bit integers. Throws TypeError for other elements, BufferError for other
// layouts.
template <typename T>
class Column {
 public:
  using Element = std::remove_const_t<T>;

  Column(const char* name, nb::handle array) {
    const int flags = PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | (std::is_const_v<T> ? 0 : PyBUF_WRITABLE);
    if (PyObject_GetBuffer(array.ptr(), &view_, flags) != 0) nb::raise_python_error();
    const char format = view_.format[0];
    const bool is_right =
        std::is_same_v<Element, double> ? format == 'd' : format == 'l' || format == 'q';
    if (is_right && view_.format[1] == '\0' && view_.itemsize == sizeof(Element)) return;
    const std::string given = view_.format;
    PyBuffer_Release(&view_);
    throw nb::type_error((std::string(name) + ": wrong elements, '" + given + "'").c_str());
  }
  ~Column() { PyBuffer_Release(&view_); }
  Column(const Column&) = delete;
  Column& operator=(const Column&) = delete;

  T* data() const { return static_cast<T*>(view_.buf); }
  int64_t size() const { return view_.len / static_cast<int64_t>(sizeof(Element)); }

 private:
  Py_buffer view_;
};

using Ints = Column<const int64_t>;
using Floats = Column<const double>;
using OutInts = Column<int64_t>;
using OutFloats = Column<double>;

}  // namespace rtp
