// Bindings of routing and of experts.
#include <string>

#include "bindings.h"
#include "expert_arguments.h"
#include "paged_arguments.h"
#include "route.h"
#include "scratch.h"

namespace rtp {
namespace {

// Below this many logits or products a second thread costs more than it saves.
constexpr int64_t kParallelLogits = 1 << 13, kParallelProducts = 1 << 17;

std::string sizes(const PackedMatrix& weight) {
  return "[" + std::to_string(weight.n) + ", " + std::to_string(weight.k) + "]";
}

void py_route(const CpuArray& ids_, const CpuArray& weights_, const CpuArray& logits_,
              bool is_renormalized) {
  const Array ids("route", "ids", ids_), weights("route", "weights", weights_);
  const Array logits("route", "logits", logits_);
  Route op{};
  logits.of(Scalar::kF32).shape({kAny, kAny}).contiguous(1);
  op.n = logits.size(0);
  op.num_experts = logits.size(1);
  op.top_k = ids.of(Scalar::kI32).shape({op.n, kAny}).contiguous().size(1);
  weights.of(Scalar::kF32).shape({op.n, op.top_k}).contiguous();
  check_top_k("route", op.top_k, op.num_experts);
  op.logits = logits.data<const float>();
  op.logits_stride = logits.stride(0);
  op.is_renormalized = is_renormalized;
  op.ids = ids.data<int32_t>();
  op.weights = weights.data<float>();
  const nb::gil_scoped_release release;
  run_team(op.n * op.num_experts > kParallelLogits, [&](const Member& member) {
    member.split(op.n, 1, Repeats::kYes,
                 [&](int64_t begin, int64_t end) { RTP_DISPATCH(route)(op, begin, end); });
  });
}

void py_sigmoid(const CpuArray& out_, const CpuArray& x_) {
  const Array out("sigmoid", "out", out_), x("sigmoid", "x", x_);
  const int64_t n = x.of(Scalar::kF32).shape({kAny}).size(0);
  out.of(Scalar::kF32).shape({n}).contiguous();
  const nb::gil_scoped_release release;
  RTP_DISPATCH(sigmoid)(out.data<float>(), x.data<const float>(), n, x.stride(0));
}

void py_experts(const CpuArray& out_, const CpuArray& x_, const CpuArray& ids_,
                const CpuArray& weights_, const LinearWeight& gate_up, const LinearWeight& down,
                int64_t num_experts, int64_t first_expert) {
  const char* name = "experts";
  const Array out(name, "out", out_), x(name, "x", x_), ids(name, "ids", ids_);
  const Array weights(name, "weights", weights_);
  Experts op{};
  ExpertPass& pass = op.passes[0];
  pass.stack = bind_stack(name, gate_up, down, num_experts);
  op.n = x.floating().shape({kAny, pass.stack.hidden_size}).contiguous().size(0);
  if (x.dtype() != pass.stack.down.dtype) {
    throw nb::type_error("experts: x must have the type of the weights");
  }
  const int64_t top_k = ids.of(Scalar::kI32).shape({op.n, kAny}).contiguous().size(1);
  weights.of(Scalar::kF32).shape({op.n, top_k}).contiguous();
  out.of(Scalar::kF32).shape({op.n, pass.stack.hidden_size}).contiguous();
  op.num_passes = 1;
  op.x = x.data();
  op.out = out.data();
  const nb::gil_scoped_release release;
  const int64_t pairs = op.n * top_k;
  const auto take = [&](Pieces& pieces) {
    pieces.take(pass.groups.starts, num_experts + 1);
    pieces.take(pass.groups.rows, pairs);
    pieces.take(pass.groups.weights, pairs);
    char* hidden = nullptr;
    pieces.take(hidden,
                pairs * hidden_stride(pass.stack.inner_size) * (x.dtype() == DType::kBf16 ? 2 : 4));
    pass.hidden = hidden;
  };
  Pieces needed(nullptr);
  take(needed);
  Pieces pieces(
      reinterpret_cast<float*>(call_memory(needed.floats() * static_cast<int64_t>(sizeof(float)))));
  take(pieces);
  group_by_expert(pass.groups, ids.data<const int32_t>(), weights.data<const float>(), op.n, top_k,
                  first_expert, num_experts);
  const int64_t products = pairs * 3 * pass.stack.inner_size * pass.stack.hidden_size;
  run_team(products > kParallelProducts, [&](const Member& member) {
    RTP_DISPATCH(gate_experts)(op, member);
    RTP_DISPATCH(sum_experts)(op, member);
  });
}

}  // namespace

ExpertStack bind_stack(const char* op, const LinearWeight& gate_up, const LinearWeight& down,
                       int64_t count) {
  const std::string name(op);
  require(count >= 1 && count <= kMaxExperts, name + ": num_experts must be from 1 to " +
                                                  std::to_string(kMaxExperts) + ", got " +
                                                  std::to_string(count));
  ExpertStack stack{gate_up.projection().weight, down.projection().weight, count, 0, 0};
  stack.hidden_size = stack.gate_up.k;
  stack.inner_size = stack.down.k;
  require(!stack.gate_up.escapes && !stack.down.escapes, name + ": experts' weights are plain");
  require(stack.gate_up.n == count * 2 * stack.inner_size &&
              stack.down.n == count * stack.hidden_size && stack.gate_up.dtype == stack.down.dtype,
          name + ": gate_up " + sizes(stack.gate_up) + " and down " + sizes(stack.down) +
              " are not of " + std::to_string(count) + " experts of one type");
  require(stack.inner_size % kStripOutputs == 0 && stack.hidden_size % kStripOutputs == 0,
          name + ": sizes of experts must be multiples of " + std::to_string(kStripOutputs) +
              ", got " + std::to_string(stack.hidden_size) + " and " +
              std::to_string(stack.inner_size));
  require(!gate_up.projection().bias && !down.projection().bias, name + ": experts have no bias");
  return stack;
}

void check_top_k(const char* op, int64_t top_k, int64_t num_experts) {
  require(num_experts <= kMaxExperts && top_k >= 1 && top_k <= kMaxExpertsPerRow &&
              top_k <= num_experts,
          std::string(op) + ": cannot choose " + std::to_string(top_k) + " of " +
              std::to_string(num_experts) + " experts");
}

void bind_experts(nb::module_& module) {
  const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
  module.def("route", &py_route, array("ids"), array("weights"), array("logits"),
             nb::arg("is_renormalized"));
  module.def("sigmoid", &py_sigmoid, array("out"), array("x"));
  module.def("experts", &py_experts, array("out"), array("x"), array("ids"), array("weights"),
             nb::arg("gate_up"), nb::arg("down"), nb::arg("num_experts"), nb::arg("first_expert"));
}

}  // namespace rtp
