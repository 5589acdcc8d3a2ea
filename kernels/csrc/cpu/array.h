// Checked arguments: an array from Python becomes a pointer and strides, or a clear error.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <initializer_list>
#include <string>

#include "types.h"

namespace rtp {

namespace nb = nanobind;

// What a binding takes: any CPU array. Bind every one with noconvert(), or nanobind copies.
using CpuArray = nb::ndarray<nb::device::cpu>;

enum class Scalar { kBf16, kF32, kF64, kI32, kI64, kU8 };

inline constexpr int64_t kAny = -1;

// "bfloat16", "float32" and so on. Throws ValueError for any other name.
nb::dlpack::dtype scalar_named(const std::string& name);

// One argument under check. Each check returns *this, and throws TypeError for a wrong element
// type, ValueError for a wrong shape or layout, naming op and argument.
class Array {
 public:
  Array(const char* op, const char* name, const CpuArray& array)
      : op_(op), name_(name), array_(array) {}

  const Array& of(Scalar scalar) const;
  // bf16 or float, whatever the argument has.
  const Array& floating() const;
  // The element type of `other`.
  const Array& like(const Array& other) const;
  // kAny leaves an extent free.
  const Array& shape(std::initializer_list<int64_t> extents) const;
  // The elements of dimensions `first` and after lie one after the other.
  const Array& contiguous(int first = 0) const;

  int64_t size(int dim) const { return static_cast<int64_t>(array_.shape(dim)); }
  // In elements. Of a dimension of extent one it may be anything.
  int64_t stride(int dim) const { return array_.stride(dim); }
  int rank() const { return static_cast<int>(array_.ndim()); }
  DType dtype() const;

  template <typename T = void>
  T* data() const {
    return static_cast<T*>(static_cast<void*>(array_.data()));
  }

 private:
  std::string what() const { return std::string(op_) + ": " + name_; }

  const char* op_;
  const char* name_;
  const CpuArray& array_;
};

}  // namespace rtp
