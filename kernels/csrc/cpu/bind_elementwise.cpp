#include <nanobind/stl/vector.h>

#include <algorithm>

#include "activation.h"
#include "array.h"
#include "bindings.h"
#include "norm.h"
#include "rotary.h"

namespace rtp {
namespace {

// Below this many elements a second thread costs more than it saves.
constexpr int64_t kParallelElements = 1 << 15;

void py_rms_norm(const CpuArray& out_, const CpuArray& x_, const CpuArray& weight_, float eps) {
  const Array x("rms_norm", "x", x_), weight("rms_norm", "weight", weight_);
  const Array out("rms_norm", "out", out_);
  const bool has_heads = x.rank() == 3;
  RmsNorm op{};
  x.floating();
  if (has_heads) {
    x.shape({kAny, kAny, kAny}).contiguous(2);
    out.shape({x.size(0), x.size(1), x.size(2)});
  } else {
    x.shape({kAny, kAny}).contiguous(1);
    out.shape({x.size(0), x.size(1)});
  }
  op.dtype = x.dtype();
  op.outer = x.size(0);
  op.inner = has_heads ? x.size(1) : 1;
  op.d = x.size(has_heads ? 2 : 1);
  op.outer_stride = x.stride(0);
  op.inner_stride = has_heads ? x.stride(1) : 0;
  op.out = out.like(x).contiguous().data();
  op.x = x.data();
  op.weight = weight.like(x).shape({op.d}).contiguous().data();
  op.eps = eps;
  const nb::gil_scoped_release release;
  run_team(op.outer * op.inner * op.d > kParallelElements,
           [&](const Member& member) { RTP_DISPATCH(rms_norm)(op, member); });
}

void py_silu_and_mul(const CpuArray& out_, const CpuArray& gate_up_) {
  const Array gate_up("silu_and_mul", "gate_up", gate_up_), out("silu_and_mul", "out", out_);
  gate_up.floating().shape({kAny, kAny}).contiguous(1);
  if (gate_up.size(1) % 2) {
    throw nb::value_error("silu_and_mul: gate_up must have an even number of columns");
  }
  SiluAndMul op{};
  op.dtype = gate_up.dtype();
  op.n = gate_up.size(0);
  op.d = gate_up.size(1) / 2;
  op.out = out.like(gate_up).shape({op.n, op.d}).contiguous().data();
  op.gate_up = gate_up.data();
  op.gate_up_stride = gate_up.stride(0);
  const nb::gil_scoped_release release;
  run_team(op.n * op.d > kParallelElements / 2,
           [&](const Member& member) { RTP_DISPATCH(silu_and_mul)(op, member); });
}

// One row of positions drives every frequency; three drive what `sections` gives each.
void set_positions(Rotary& op, const Array& positions, const std::vector<int64_t>& sections) {
  positions.of(Scalar::kI64);
  const int64_t half = op.head_dim / 2;
  if (positions.rank() == 1) {
    positions.shape({op.n}).contiguous();
    op.sections[0] = half;
  } else {
    positions.shape({3, op.n}).contiguous(1);
    if (sections.size() != 3 || sections[0] + sections[1] + sections[2] != half ||
        *std::min_element(sections.begin(), sections.end()) < 0) {
      throw nb::value_error(("rotary: sections must be three counts that add up to " +
                             std::to_string(half) + " frequencies")
                                .c_str());
    }
    std::copy(sections.begin(), sections.end(), op.sections);
    op.positions_stride = positions.stride(0);
  }
  op.positions = positions.data<const int64_t>();
}

void check_positions(const Rotary& op, int64_t rows, int64_t max_positions) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t token = 0; token < op.n; ++token) {
      const int64_t position = op.positions[row * op.positions_stride + token];
      if (position >= 0 && position < max_positions) continue;
      throw nb::value_error(("rotary: positions must be from 0 to " +
                             std::to_string(max_positions - 1) + ", got " +
                             std::to_string(position) + " for token " + std::to_string(token))
                                .c_str());
    }
  }
}

void py_rotary(const CpuArray& query_, const CpuArray& key_, const CpuArray& positions_,
               const CpuArray& cos_sin_, const std::vector<int64_t>& sections) {
  const Array query("rotary", "query", query_), key("rotary", "key", key_);
  const Array positions("rotary", "positions", positions_), cos_sin("rotary", "cos_sin", cos_sin_);
  Rotary op{};
  op.dtype = query.floating().shape({kAny, kAny, kAny}).contiguous(1).dtype();
  op.n = query.size(0);
  op.query_heads = query.size(1);
  op.head_dim = query.size(2);
  key.like(query).shape({op.n, kAny, op.head_dim}).contiguous(1);
  op.key_heads = key.size(1);
  if (op.head_dim % 2 || op.head_dim > Rotary::kMaxHeadDim) {
    throw nb::value_error(("rotary: head_dim must be even and at most " +
                           std::to_string(Rotary::kMaxHeadDim) + ", got " +
                           std::to_string(op.head_dim))
                              .c_str());
  }
  cos_sin.of(Scalar::kF32).shape({kAny, op.head_dim}).contiguous(1);
  set_positions(op, positions, sections);
  check_positions(op, positions.rank() == 1 ? 1 : 3, cos_sin.size(0));
  op.query = op.query_out = query.data();
  op.key = op.key_out = key.data();
  op.cos_sin = cos_sin.data<const float>();
  op.query_stride = op.query_out_stride = query.stride(0);
  op.key_stride = op.key_out_stride = key.stride(0);
  op.cos_sin_stride = cos_sin.stride(0);
  const nb::gil_scoped_release release;
  run_team(op.n * (op.query_heads + op.key_heads) * op.head_dim > kParallelElements,
           [&](const Member& member) {
             // In place: a token must not turn twice.
             member.split(op.n, 1, Repeats::kNo, [&](int64_t begin, int64_t end) {
               RTP_DISPATCH(rotary)(op, begin, end);
             });
           });
}

}  // namespace

void bind_elementwise(nb::module_& module) {
  const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
  module.def("rms_norm", &py_rms_norm, array("out"), array("x"), array("weight"), nb::arg("eps"));
  module.def("rotary", &py_rotary, array("query"), array("key"), array("positions"),
             array("cos_sin"), nb::arg("sections"));
  module.def("silu_and_mul", &py_silu_and_mul, array("out"), array("gate_up"));
}

}  // namespace rtp
