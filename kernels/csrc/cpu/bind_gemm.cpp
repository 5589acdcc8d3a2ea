// Bindings of linear layers. A weight is checked and bound once, not a call.
#include "bindings.h"
#include "gemm_pack.h"
#include "linear_weight.h"

namespace rtp {
namespace {

// Below this many products, or elements to copy, a second thread costs more than it saves.
constexpr int64_t kParallelProducts = 1 << 17, kParallelElements = 1 << 16;

int64_t strips(int64_t n) { return (n + kStripOutputs - 1) / kStripOutputs; }

// The packed layout of gemm.h as a shape.
void check_packed(const Array& packed, int64_t n, int64_t k) {
  if (packed.floating().dtype() == DType::kBf16) {
    packed.shape({strips(n), (k + 1) / 2, kStripOutputs, 2}).contiguous();
  } else {
    packed.shape({strips(n), k, kStripOutputs}).contiguous();
  }
}

void py_pack_weight(const CpuArray& packed_, const CpuArray& weight_) {
  const char* name = "pack_weight";
  const Array packed(name, "packed", packed_), weight(name, "weight", weight_);
  weight.floating().shape({kAny, kAny}).contiguous(1);
  check_packed(packed.like(weight), weight.size(0), weight.size(1));
  const nb::gil_scoped_release release;
  run_team(weight.size(0) * weight.size(1) > kParallelElements, [&](const Member& member) {
    pack(packed.data(), weight.data(), weight.stride(0), weight.dtype(), weight.size(0),
         weight.size(1), member);
  });
}

}  // namespace

LinearWeight::LinearWeight(const CpuArray& packed_array, const CpuArray& bias_array, int64_t n,
                           int64_t k)
    : packed_array_(packed_array), bias_array_(bias_array) {
  const Array packed("LinearWeight", "packed", packed_array_);
  check_packed(packed, n, k);
  projection_.weight = {packed.dtype(), packed.data(), n, k};
  if (!bias_array_.is_valid()) return;
  const Array bias("LinearWeight", "bias", bias_array_);
  projection_.bias = bias.of(Scalar::kF32).shape({n}).contiguous().data<const float>();
}

void LinearWeight::linear(uintptr_t out, bool is_out_f32, uintptr_t x, int64_t m,
                          int64_t x_stride) const {
  const PackedMatrix& weight = projection_.weight;
  Linear op{};
  op.weight = weight;
  op.bias = projection_.bias;
  op.x = reinterpret_cast<const void*>(x);
  op.out = reinterpret_cast<void*>(out);
  op.out_dtype = is_out_f32 ? DType::kF32 : weight.dtype;
  op.m = m;
  op.x_stride = x_stride;
  op.out_stride = weight.n;
  const nb::gil_scoped_release release;
  run_team(m * weight.n * weight.k > kParallelProducts,
           [&](const Member& member) { RTP_DISPATCH(linear)(op, member); });
}

void LinearWeight::gather_rows(const CpuArray& out_, const CpuArray& ids_) const {
  const PackedMatrix& weight = projection_.weight;
  const Array out("gather_rows", "out", out_), ids("gather_rows", "ids", ids_);
  const int64_t count = ids.of(Scalar::kI64).shape({kAny}).contiguous().size(0);
  const Scalar scalar = weight.dtype == DType::kBf16 ? Scalar::kBf16 : Scalar::kF32;
  out.of(scalar).shape({count, weight.k}).contiguous();
  const int64_t* id = ids.data<const int64_t>();
  for (int64_t i = 0; i < count; ++i) {
    if (id[i] >= 0 && id[i] < weight.n) continue;
    throw nb::value_error(("gather_rows: ids[" + std::to_string(i) + "] must be from 0 to " +
                           std::to_string(weight.n - 1) + ", got " + std::to_string(id[i]))
                              .c_str());
  }
  const nb::gil_scoped_release release;
  run_team(count * weight.k > kParallelElements, [&](const Member& member) {
    rtp::gather_rows(out.data(), id, count, weight, member);
  });
}

void bind_gemm(nb::module_& module) {
  const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
  module.def("pack_weight", &py_pack_weight, array("packed"), array("weight"));
  nb::class_<LinearWeight>(module, "LinearWeight")
      .def(nb::init<const CpuArray&, const CpuArray&, int64_t, int64_t>(), array("packed"),
           array("bias").none(), nb::arg("n"), nb::arg("k"))
      .def("linear", &LinearWeight::linear, nb::arg("out"), nb::arg("is_out_f32"), nb::arg("x"),
           nb::arg("m"), nb::arg("x_stride"))
      .def("gather_rows", &LinearWeight::gather_rows, array("out"), array("ids"));
}

}  // namespace rtp
