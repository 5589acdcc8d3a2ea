// Bindings of linear layers. A weight is checked and bound once, not a call.
#include "bindings.h"
#include "greedy_head.h"
#include "linear_weight.h"
#include "on_team.h"
#include "paged_arguments.h"
#include "weight_coder.h"

namespace rtp {
namespace {

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

void py_pack_rows(const CpuArray& packed_, const CpuArray& rows_, int64_t first_row,
                  int64_t num_rows) {
  const char* name = "pack_rows";
  const Array packed(name, "packed", packed_), rows(name, "rows", rows_);
  rows.floating().shape({kAny, kAny}).contiguous(1);
  check_packed(packed.like(rows), num_rows, rows.size(1));
  if (first_row < 0 || first_row > num_rows - rows.size(0)) {
    throw nb::value_error(("pack_rows: " + std::to_string(rows.size(0)) + " rows from row " +
                           std::to_string(first_row) + " on are not among " +
                           std::to_string(num_rows))
                              .c_str());
  }
  const nb::gil_scoped_release release;
  pack_rows(packed.data(), rows.data(), rows.stride(0), rows.dtype(), first_row, rows.size(0),
            num_rows, rows.size(1));
}

// The layout of screen.h as a shape.
const Array& check_screen(const Array& screen, int64_t n, int64_t k) {
  return screen.of(Scalar::kU8).shape({strips(n), screen_strip_bytes(k)}).contiguous();
}

// The layout of coded_strip.h as a shape.
void check_coded(const Array& coded, int64_t n, int64_t k) {
  coded.of(Scalar::kU8).shape({strips(n), coded_strip_bytes(k)}).contiguous();
}

// Strips may come from a file whose bytes are not checked yet: none reads what it must not.
void check_escapes(const PackedMatrix& coded, int64_t num_escapes) {
  for (int64_t i = 0; i < strips(coded.n); ++i) {
    const CodedStrip strip(strip_of(coded, i), coded.escapes, coded.k);
    require(strip.escapes <= strip.end && strip.end <= coded.escapes + num_escapes,
            "LinearWeight: strip " + std::to_string(i) + " has escapes beyond the last");
  }
}

PackedMatrix plain_matrix(const Array& packed, int64_t n, int64_t k) {
  check_packed(packed.of(Scalar::kBf16), n, k);
  return {DType::kBf16, packed.data(), n, k};
}

void py_count_escapes(const CpuArray& counts_, const CpuArray& packed_, int64_t n, int64_t k) {
  const Array counts("count_escapes", "counts", counts_);
  const PackedMatrix plain = plain_matrix({"count_escapes", "packed", packed_}, n, k);
  int64_t* count = counts.of(Scalar::kI64).shape({strips(n)}).contiguous().data<int64_t>();
  const nb::gil_scoped_release release;
  run_team(n * k > kParallelElements,
           [&](const Member& member) { count_escapes(count, plain, member); });
}

void py_code_weight(const CpuArray& coded_, const CpuArray& escapes_, const CpuArray& first_,
                    const CpuArray& packed_, int64_t n, int64_t k) {
  const Array coded("code_weight", "coded", coded_), escapes("code_weight", "escapes", escapes_);
  const Array first("code_weight", "first", first_);
  const PackedMatrix plain = plain_matrix({"code_weight", "packed", packed_}, n, k);
  check_coded(coded, n, k);
  bf16* escape = escapes.of(Scalar::kBf16).shape({kAny}).contiguous().data<bf16>();
  const int64_t* start =
      first.of(Scalar::kI64).shape({strips(n)}).contiguous().data<const int64_t>();
  const nb::gil_scoped_release release;
  run_team(n * k > kParallelElements, [&](const Member& member) {
    code_strips(coded.data<uint8_t>(), escape, start, plain, member);
  });
}

void py_make_screen(const CpuArray& screen_, const CpuArray& packed_, int64_t n, int64_t k) {
  const Array screen("make_screen", "screen", screen_);
  const PackedMatrix plain = plain_matrix({"make_screen", "packed", packed_}, n, k);
  check_screen(screen, n, k);
  require(k <= kMaxScreenedInputs, "make_screen: too many inputs");
  const nb::gil_scoped_release release;
  const auto kernel = RTP_DISPATCH(make_screen);
  run_team(n * k > kParallelElements,
           [&](const Member& member) { kernel(screen.data<uint8_t>(), plain, member); });
}

}  // namespace

void check_indices(const char* name, const int64_t* indices, int64_t count, int64_t limit) {
  for (int64_t i = 0; i < count; ++i) {
    if (indices[i] >= 0 && indices[i] < limit) continue;
    throw nb::value_error((std::string(name) + "[" + std::to_string(i) + "] must be from 0 to " +
                           std::to_string(limit - 1) + ", got " + std::to_string(indices[i]))
                              .c_str());
  }
}

LinearWeight::LinearWeight(const CpuArray& packed_array, const CpuArray& bias_array, int64_t n,
                           int64_t k, const CpuArray& screen_array, const CpuArray& escapes_array)
    : packed_array_(packed_array),
      bias_array_(bias_array),
      screen_array_(screen_array),
      escapes_array_(escapes_array) {
  const Array packed("LinearWeight", "packed", packed_array_);
  if (escapes_array_.is_valid()) {
    const Array escapes("LinearWeight", "escapes", escapes_array_);
    check_coded(packed, n, k);
    escapes.of(Scalar::kBf16).shape({kAny}).contiguous();
    projection_.weight = {DType::kBf16, packed.data(), n, k, escapes.data<const bf16>()};
    check_escapes(projection_.weight, escapes.size(0));
  } else {
    check_packed(packed, n, k);
    projection_.weight = {packed.dtype(), packed.data(), n, k};
  }
  if (bias_array_.is_valid()) {
    const Array bias("LinearWeight", "bias", bias_array_);
    projection_.bias = bias.of(Scalar::kF32).shape({n}).contiguous().data<const float>();
  }
  if (screen_array_.is_valid()) {
    require(!bias_array_.is_valid() && projection_.weight.dtype == DType::kBf16,
            "LinearWeight: a screen is of a bfloat16 weight without bias");
    const Array screen("LinearWeight", "screen", screen_array_);
    screen_ = {check_screen(screen, n, k).data<const uint8_t>(), n, k};
  }
}

Linear LinearWeight::product(uintptr_t out, bool is_out_f32, uintptr_t x, int64_t m,
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
  return op;
}

void LinearWeight::linear(uintptr_t out, bool is_out_f32, uintptr_t x, int64_t m,
                          int64_t x_stride) const {
  const Linear op = product(out, is_out_f32, x, m, x_stride);
  const nb::gil_scoped_release release;
  multiply(op);
}

Linear LinearWeight::logits_product(float* out, const void* x, int64_t x_stride,
                                    const int64_t* rows, int64_t m, const void* norm_weight,
                                    float eps) const {
  Linear op =
      product(reinterpret_cast<uintptr_t>(out), true, reinterpret_cast<uintptr_t>(x), m, x_stride);
  op.rows = rows;
  op.prologue = Prologue::kRmsNorm;
  op.norm_weight = norm_weight;
  op.eps = eps;
  return op;
}

void LinearWeight::logits(const CpuArray& out_, uintptr_t x, int64_t num_rows, int64_t x_stride,
                          const CpuArray& rows_, uintptr_t norm_weight, float eps) const {
  const Array out("logits", "out", out_), rows("logits", "rows", rows_);
  const int64_t m = rows.of(Scalar::kI64).shape({kAny}).contiguous().size(0);
  out.of(Scalar::kF32).shape({m, projection_.weight.n}).contiguous();
  const int64_t* row = rows.data<const int64_t>();
  check_indices("logits: rows", row, m, num_rows);
  const Linear op = logits_product(out.data<float>(), reinterpret_cast<const void*>(x), x_stride,
                                   row, m, reinterpret_cast<const void*>(norm_weight), eps);
  const nb::gil_scoped_release release;
  multiply(op);
}

int64_t LinearWeight::greedy(const CpuArray& out_, uintptr_t x, int64_t num_rows, int64_t x_stride,
                             const CpuArray& rows_, uintptr_t norm_weight, float eps) const {
  const Array out("greedy", "out", out_), rows("greedy", "rows", rows_);
  const int64_t m = rows.of(Scalar::kI64).shape({kAny}).contiguous().size(0);
  int32_t* token_ids = out.of(Scalar::kI32).shape({m}).contiguous().data<int32_t>();
  const int64_t* row = rows.data<const int64_t>();
  check_indices("greedy: rows", row, m, num_rows);
  const Linear op = logits_product(nullptr, reinterpret_cast<const void*>(x), x_stride, row, m,
                                   reinterpret_cast<const void*>(norm_weight), eps);
  const nb::gil_scoped_release release;
  return rtp::greedy(token_ids, op, screen());
}

void LinearWeight::gather_rows(uintptr_t out, const CpuArray& ids_) const {
  const PackedMatrix& weight = projection_.weight;
  const Array ids("gather_rows", "ids", ids_);
  const int64_t count = ids.of(Scalar::kI64).shape({kAny}).contiguous().size(0);
  const int64_t* id = ids.data<const int64_t>();
  check_indices("gather_rows: ids", id, count, weight.n);
  const nb::gil_scoped_release release;
  rtp::gather_rows(reinterpret_cast<void*>(out), id, count, weight);
}

void bind_gemm(nb::module_& module) {
  const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
  module.def("pack_weight", &py_pack_weight, array("packed"), array("weight"));
  module.def("pack_rows", &py_pack_rows, array("packed"), array("rows"), nb::arg("first_row"),
             nb::arg("num_rows"));
  module.def("has_fast_screen", [] { return RTP_DISPATCH(has_fast_screen)(); });
  module.def("has_fast_codes", [] { return isa() == Isa::kAvx512Bf16; });
  module.def("count_escapes", &py_count_escapes, array("counts"), array("packed"), nb::arg("n"),
             nb::arg("k"));
  module.def("code_weight", &py_code_weight, array("coded"), array("escapes"), array("first"),
             array("packed"), nb::arg("n"), nb::arg("k"));
  module.def("make_screen", &py_make_screen, array("screen"), array("packed"), nb::arg("n"),
             nb::arg("k"));
  nb::class_<LinearWeight>(module, "LinearWeight")
      .def(nb::init<const CpuArray&, const CpuArray&, int64_t, int64_t, const CpuArray&,
                    const CpuArray&>(),
           array("packed"), array("bias").none(), nb::arg("n"), nb::arg("k"),
           array("screen").none() = nb::none(), array("escapes").none() = nb::none())
      .def("linear", &LinearWeight::linear, nb::arg("out"), nb::arg("is_out_f32"), nb::arg("x"),
           nb::arg("m"), nb::arg("x_stride"))
      .def("logits", &LinearWeight::logits, array("out"), nb::arg("x"), nb::arg("num_rows"),
           nb::arg("x_stride"), array("rows"), nb::arg("norm_weight"), nb::arg("eps"))
      .def("greedy", &LinearWeight::greedy, array("out"), nb::arg("x"), nb::arg("num_rows"),
           nb::arg("x_stride"), array("rows"), nb::arg("norm_weight"), nb::arg("eps"))
      .def("gather_rows", &LinearWeight::gather_rows, nb::arg("out"), array("ids"));
}

}  // namespace rtp
