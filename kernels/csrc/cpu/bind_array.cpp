// Memory of whoever holds it as an array of ours: numpy has no bfloat16.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "array.h"
#include "bindings.h"

namespace rtp {
namespace {

// Contiguous, of the type with this name. The array keeps `owner`, to whom the memory belongs.
nb::ndarray<nb::array_api> py_array(uintptr_t address, const std::vector<size_t>& shape,
                                    const std::string& dtype, nb::object owner) {
  return {reinterpret_cast<void*>(address),
          shape.size(),
          shape.data(),
          owner,
          nullptr,
          scalar_named(dtype)};
}

}  // namespace

void bind_array(nb::module_& module) {
  module.def("array", &py_array, nb::arg("address"), nb::arg("shape"), nb::arg("dtype"),
             nb::arg("owner"));
}

}  // namespace rtp
