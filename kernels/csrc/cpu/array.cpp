#include "array.h"

#include <iterator>

namespace rtp {
namespace {

using nb::dlpack::dtype_code;

constexpr nb::dlpack::dtype kScalars[] = {
    {static_cast<uint8_t>(dtype_code::Bfloat), 16, 1},
    {static_cast<uint8_t>(dtype_code::Float), 32, 1},
    {static_cast<uint8_t>(dtype_code::Float), 64, 1},
    {static_cast<uint8_t>(dtype_code::Int), 32, 1},
    {static_cast<uint8_t>(dtype_code::Int), 64, 1},
    {static_cast<uint8_t>(dtype_code::UInt), 8, 1},
};
constexpr const char* kScalarNames[] = {"bfloat16", "float32", "float64",
                                        "int32",    "int64",   "uint8"};

bool is(const CpuArray& array, Scalar scalar) {
  return array.dtype() == kScalars[static_cast<int>(scalar)];
}

std::string dtype_name(nb::dlpack::dtype dtype) {
  const char* kind = "unknown";
  switch (static_cast<dtype_code>(dtype.code)) {
    case dtype_code::Int:
      kind = "int";
      break;
    case dtype_code::UInt:
      kind = "uint";
      break;
    case dtype_code::Float:
      kind = "float";
      break;
    case dtype_code::Bfloat:
      kind = "bfloat";
      break;
    case dtype_code::Complex:
      kind = "complex";
      break;
    case dtype_code::Bool:
      return "bool";
    default:
      break;
  }
  return kind + std::to_string(dtype.bits);
}

std::string shape_name(std::initializer_list<int64_t> extents) {
  std::string text = "[";
  for (const int64_t extent : extents) {
    text += (text.size() > 1 ? ", " : "") + (extent == kAny ? "*" : std::to_string(extent));
  }
  return text + "]";
}

std::string shape_name(const CpuArray& array) {
  std::string text = "[";
  for (size_t dim = 0; dim < array.ndim(); ++dim) {
    text += (dim ? ", " : "") + std::to_string(array.shape(dim));
  }
  return text + "]";
}

}  // namespace

nb::dlpack::dtype scalar_named(const std::string& name) {
  for (size_t i = 0; i < std::size(kScalars); ++i) {
    if (name == kScalarNames[i]) return kScalars[i];
  }
  throw nb::value_error(("no element type is named " + name).c_str());
}

const Array& Array::of(Scalar scalar) const {
  if (is(array_, scalar)) return *this;
  throw nb::type_error((what() + " must be " + kScalarNames[static_cast<int>(scalar)] + ", got " +
                        dtype_name(array_.dtype()))
                           .c_str());
}

const Array& Array::floating() const {
  if (is(array_, Scalar::kBf16) || is(array_, Scalar::kF32)) return *this;
  throw nb::type_error(
      (what() + " must be bfloat16 or float32, got " + dtype_name(array_.dtype())).c_str());
}

const Array& Array::like(const Array& other) const {
  if (array_.dtype() == other.array_.dtype()) return *this;
  throw nb::type_error((what() + " must be " + dtype_name(other.array_.dtype()) + " like " +
                        other.name_ + ", got " + dtype_name(array_.dtype()))
                           .c_str());
}

const Array& Array::shape(std::initializer_list<int64_t> extents) const {
  bool matches = array_.ndim() == extents.size();
  for (size_t dim = 0; matches && dim < extents.size(); ++dim) {
    const int64_t extent = extents.begin()[dim];
    matches = extent == kAny || extent == size(static_cast<int>(dim));
  }
  if (matches) return *this;
  throw nb::value_error(
      (what() + " must have shape " + shape_name(extents) + ", got " + shape_name(array_)).c_str());
}

const Array& Array::contiguous(int first) const {
  int64_t expected = 1;
  for (int dim = rank() - 1; dim >= first; --dim) {
    if (array_.size() && size(dim) > 1 && stride(dim) != expected) {
      throw nb::value_error(
          (what() + " must be contiguous from dimension " + std::to_string(first)).c_str());
    }
    expected *= size(dim);
  }
  return *this;
}

DType Array::dtype() const { return is(array_, Scalar::kBf16) ? DType::kBf16 : DType::kF32; }

}  // namespace rtp
