// Memory of whoever holds it as an array of ours: numpy has no bfloat16.
#include <nanobind/stl/vector.h>

#include "array.h"
#include "bindings.h"

namespace rtp {
namespace {

// Contiguous, of bf16 or of float. The array keeps `owner`, to whom the memory belongs.
nb::ndarray<nb::array_api> py_array(uintptr_t address, const std::vector<size_t>& shape,
                                    bool is_bf16, nb::object owner) {
  const nb::dlpack::dtype dtype{static_cast<uint8_t>(is_bf16 ? nb::dlpack::dtype_code::Bfloat
                                                             : nb::dlpack::dtype_code::Float),
                                static_cast<uint8_t>(is_bf16 ? 16 : 32), 1};
  return {reinterpret_cast<void*>(address), shape.size(), shape.data(), owner, nullptr, dtype};
}

}  // namespace

void bind_array(nb::module_& module) {
  module.def("array", &py_array, nb::arg("address"), nb::arg("shape"), nb::arg("is_bf16"),
             nb::arg("owner"));
}

}  // namespace rtp
