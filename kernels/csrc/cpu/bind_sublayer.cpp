// Bindings of sublayers, and of a run of them.
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "bindings.h"
#include "expert_arguments.h"
#include "linear_weight.h"
#include "moe_sublayer.h"
#include "route.h"
#include "step_arguments.h"

namespace rtp {
namespace {

void check_projection(const char* op, const char* name, const Projection& projection, int64_t n,
                      int64_t k, DType dtype) {
  const PackedMatrix& weight = projection.weight;
  require(weight.n == n && weight.k == k && weight.dtype == dtype,
          std::string(op) + ": " + name + " must be [" + std::to_string(n) + ", " +
              std::to_string(k) + "] of the same type as the others, got [" +
              std::to_string(weight.n) + ", " + std::to_string(weight.k) + "]");
}

// A row must fit in a slot.
void check_group(const char* op, const RankGroup* group, int64_t hidden_size) {
  const int64_t bytes = hidden_size * static_cast<int64_t>(sizeof(float));
  require(!group || group->slot_bytes() >= bytes,
          std::string(op) + ": the group's slots must have " + std::to_string(bytes) +
              " bytes at least, for a row");
}

BoundSublayer attention_sublayer(const CpuArray& norm, float eps, const LinearWeight& qkv,
                                 const LinearWeight& o, const CpuArray& query_norm,
                                 const CpuArray& key_norm, const CpuArray& cos_sin_,
                                 const std::vector<int64_t>& sections,
                                 const std::tuple<int64_t, int64_t, int64_t>& heads, float scale,
                                 int64_t layer, RankGroup* group) {
  const char* name = "attention_sublayer";
  AttentionSublayer::Parts parts{};
  std::tie(parts.num_heads, parts.num_kv_heads, parts.head_dim) = heads;
  parts.qkv = qkv.projection();
  parts.o = o.projection();
  const DType dtype = parts.dtype = parts.qkv.weight.dtype;
  const int64_t hidden_size = parts.qkv.weight.k, query_size = parts.num_heads * parts.head_dim;
  check_projection(name, "qkv", parts.qkv, query_size + 2 * parts.num_kv_heads * parts.head_dim,
                   hidden_size, dtype);
  check_projection(name, "o", parts.o, hidden_size, query_size, dtype);
  parts.norm = bind_norm(name, "norm", norm, eps, dtype, hidden_size);
  parts.query_norm = bind_norm(name, "query_norm", query_norm, eps, dtype, parts.head_dim);
  parts.key_norm = bind_norm(name, "key_norm", key_norm, eps, dtype, parts.head_dim);
  const Array cos_sin(name, "cos_sin", cos_sin_);
  cos_sin.of(Scalar::kF32).shape({kAny, parts.head_dim}).contiguous(1);
  parts.cos_sin = cos_sin.data<const float>();
  parts.max_positions = cos_sin.size(0);
  parts.cos_sin_stride = cos_sin.stride(0);
  require(sections.empty() || sections.size() == 3,
          "attention_sublayer: sections must be three counts or none");
  std::copy(sections.begin(), sections.end(), parts.sections);
  parts.layer = layer;
  parts.scale = scale;
  check_group(name, group, hidden_size);
  return {std::make_unique<AttentionSublayer>(parts, group),
          {norm, query_norm, key_norm, cos_sin_}};
}

BoundSublayer mlp_sublayer(const CpuArray& norm, float eps, const LinearWeight& gate_up,
                           const LinearWeight& down, RankGroup* group) {
  MlpSublayer::Parts parts{};
  parts.gate_up = gate_up.projection();
  parts.down = down.projection();
  const DType dtype = parts.dtype = parts.gate_up.weight.dtype;
  const int64_t hidden_size = parts.gate_up.weight.k;
  check_projection("mlp_sublayer", "down", parts.down, hidden_size, parts.gate_up.weight.n / 2,
                   dtype);
  parts.norm = bind_norm("mlp_sublayer", "norm", norm, eps, dtype, hidden_size);
  check_group("mlp_sublayer", group, hidden_size);
  return {std::make_unique<MlpSublayer>(parts, group), {norm}};
}

// `shared_gate_up` and `shared_down` are both null, or a shared expert's.
BoundSublayer moe_sublayer(const CpuArray& norm, float eps, const LinearWeight& router,
                           const LinearWeight& gate_up, const LinearWeight& down,
                           const LinearWeight* shared_gate_up, const LinearWeight* shared_down,
                           int64_t top_k, bool is_renormalized, const CpuArray& load_) {
  const char* name = "moe_sublayer";
  const Array load(name, "load", load_);
  const int64_t num_experts = load.of(Scalar::kI64).shape({kAny}).contiguous().size(0);
  MoeSublayer::Parts parts{};
  parts.load = load.data<int64_t>();
  parts.experts = bind_stack(name, gate_up, down, num_experts);
  const int64_t hidden_size = parts.experts.hidden_size;
  const DType dtype = parts.dtype = parts.experts.down.dtype;
  const bool has_shared = shared_gate_up && shared_down;
  if (has_shared) {
    parts.shared = bind_stack(name, *shared_gate_up, *shared_down, 1);
    require(parts.shared.hidden_size == hidden_size && parts.shared.down.dtype == dtype,
            "moe_sublayer: the shared expert must have the hidden size and type of the others");
  }
  parts.router = router.projection();
  check_projection(name, "router", parts.router, num_experts + (has_shared ? 1 : 0), hidden_size,
                   dtype);
  parts.norm = bind_norm(name, "norm", norm, eps, dtype, hidden_size);
  check_top_k(name, top_k, num_experts);
  parts.top_k = top_k;
  parts.is_renormalized = is_renormalized;
  return {std::make_unique<MoeSublayer>(parts), {norm, load_}};
}

void py_run_sublayers(const std::vector<const BoundSublayer*>& bound, const CpuArray& residual_,
                      const CpuArray& positions, const CpuArray& kv_cache, const CpuArray& slots,
                      const CpuArray& block_tables, const CpuArray& query_start_loc,
                      const CpuArray& seq_lens, int64_t window, const CpuArray& ancestor_mask) {
  const char* name = "run_sublayers";
  const Array residual(name, "residual", residual_);
  const DType dtype = residual.floating().shape({kAny, kAny}).contiguous().dtype();
  const Sublayers sublayers = sublayers_of(bound);
  Step step = check_step(name, sublayers, {dtype, residual.size(0), residual.size(1)},
                         {positions,
                          kv_cache,
                          slots,
                          {block_tables, query_start_loc, seq_lens, window, ancestor_mask}});
  const nb::gil_scoped_release release;
  step.plan = &plan_for(step.geometry);
  run_sublayers(sublayers, step, residual.data());
}

}  // namespace

void bind_sublayer(nb::module_& module) {
  const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
  nb::class_<BoundSublayer>(module, "Sublayer");
  module.def("attention_sublayer", &attention_sublayer, array("norm"), nb::arg("eps"),
             nb::arg("qkv"), nb::arg("o"), array("query_norm").none(), array("key_norm").none(),
             array("cos_sin"), nb::arg("sections"), nb::arg("heads"), nb::arg("scale"),
             nb::arg("layer"), nb::arg("group").none() = nb::none(), nb::keep_alive<0, 3>(),
             nb::keep_alive<0, 4>(), nb::keep_alive<0, 12>());
  module.def("mlp_sublayer", &mlp_sublayer, array("norm"), nb::arg("eps"), nb::arg("gate_up"),
             nb::arg("down"), nb::arg("group").none() = nb::none(), nb::keep_alive<0, 3>(),
             nb::keep_alive<0, 4>(), nb::keep_alive<0, 5>());
  module.def("moe_sublayer", &moe_sublayer, array("norm"), nb::arg("eps"), nb::arg("router"),
             nb::arg("gate_up"), nb::arg("down"), nb::arg("shared_gate_up").none(),
             nb::arg("shared_down").none(), nb::arg("top_k"), nb::arg("is_renormalized"),
             array("load"), nb::keep_alive<0, 3>(), nb::keep_alive<0, 4>(), nb::keep_alive<0, 5>(),
             nb::keep_alive<0, 6>(), nb::keep_alive<0, 7>());
  module.def("run_sublayers", &py_run_sublayers, nb::arg("sublayers"), array("residual"),
             array("positions"), array("kv_cache"), array("slots"), array("block_tables"),
             array("query_start_loc"), array("seq_lens"), nb::arg("window"),
             array("ancestor_mask").none());
}

}  // namespace rtp
