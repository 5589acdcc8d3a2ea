#include <limits>

#include "array.h"
#include "bindings.h"
#include "on_team.h"
#include "philox.h"

namespace rtp {
namespace {

// [*, vocab_size], rows of f32 that may lie apart.
void check_logits(const Array& logits) {
  logits.of(Scalar::kF32).shape({kAny, kAny}).contiguous(1);
  if (logits.size(1) > 0 && logits.size(1) <= std::numeric_limits<int32_t>::max()) return;
  throw nb::value_error("logits must have from 1 to 2^31 - 1 columns");
}

Sample greedy_op(const char* name, const CpuArray& token_ids_, const CpuArray& logits_) {
  const Array token_ids(name, "token_ids", token_ids_), logits(name, "logits", logits_);
  check_logits(logits);
  Sample op{};
  op.logits = logits.data<const float>();
  op.n = logits.size(0);
  op.vocab_size = logits.size(1);
  op.stride = logits.stride(0);
  op.token_ids = token_ids.of(Scalar::kI32).shape({op.n}).contiguous().data<int32_t>();
  return op;
}

void run(const Sample& op) {
  const nb::gil_scoped_release release;
  sample(op);
}

void py_greedy(const CpuArray& token_ids, const CpuArray& logits) {
  run(greedy_op("greedy", token_ids, logits));
}

void py_sample(const CpuArray& token_ids, const CpuArray& logits, const CpuArray& temperature_,
               const CpuArray& min_p_, const CpuArray& top_k_, const CpuArray& top_p_,
               const CpuArray& number_) {
  const char* name = "sample";
  const Array temperature(name, "temperature", temperature_), min_p(name, "min_p", min_p_);
  const Array top_k(name, "top_k", top_k_), top_p(name, "top_p", top_p_);
  const Array number(name, "number", number_);
  Sample op = greedy_op(name, token_ids, logits);
  op.temperature = temperature.of(Scalar::kF32).shape({op.n}).contiguous().data<const float>();
  op.min_p = min_p.of(Scalar::kF32).shape({op.n}).contiguous().data<const float>();
  op.top_k = top_k.of(Scalar::kI32).shape({op.n}).contiguous().data<const int32_t>();
  op.top_p = top_p.of(Scalar::kF32).shape({op.n}).contiguous().data<const float>();
  op.number = number.of(Scalar::kF64).shape({op.n}).contiguous().data<const double>();
  run(op);
}

template <typename T>
void check_range(const char* name, const T* values, int64_t count, int64_t end) {
  for (int64_t i = 0; i < count; ++i) {
    if (values[i] >= 0 && values[i] < end) continue;
    throw nb::value_error(("logprobs: " + std::string(name) + "[" + std::to_string(i) +
                           "] must be from 0 to " + std::to_string(end - 1) + ", got " +
                           std::to_string(values[i]))
                              .c_str());
  }
}

void py_logprobs(const CpuArray& own_, const CpuArray& ranks_, const CpuArray& top_,
                 const CpuArray& top_ids_, const CpuArray& logits_, const CpuArray& rows_,
                 const CpuArray& token_ids_) {
  const char* name = "logprobs";
  const Array own(name, "own", own_), ranks(name, "ranks", ranks_);
  const Array top(name, "top", top_), top_ids(name, "top_ids", top_ids_);
  const Array logits(name, "logits", logits_), rows(name, "rows", rows_);
  const Array token_ids(name, "token_ids", token_ids_);
  check_logits(logits);
  Logprobs op{};
  op.logits = logits.data<const float>();
  op.vocab_size = logits.size(1);
  op.stride = logits.stride(0);
  op.rows = rows.of(Scalar::kI64).shape({kAny}).contiguous().data<const int64_t>();
  op.n = rows.size(0);
  op.token_ids = token_ids.of(Scalar::kI32).shape({op.n}).contiguous().data<const int32_t>();
  op.own = own.of(Scalar::kF64).shape({op.n}).contiguous().data<double>();
  op.ranks = ranks.of(Scalar::kI32).shape({op.n}).contiguous().data<int32_t>();
  op.top = top.of(Scalar::kF64).shape({op.n, kAny}).contiguous().data<double>();
  op.num_top = top.size(1);
  op.top_ids = top_ids.of(Scalar::kI32).shape({op.n, op.num_top}).contiguous().data<int32_t>();
  if (op.num_top > op.vocab_size) {
    throw nb::value_error("logprobs: top must have at most as many columns as the logits");
  }
  check_range("rows", op.rows, op.n, logits.size(0));
  check_range("token_ids", op.token_ids, op.n, op.vocab_size);
  const nb::gil_scoped_release release;
  const auto kernel = RTP_DISPATCH(logprobs);
  run_team(op.n > 1 && op.n * op.vocab_size > kParallelLogits,
           [&](const Member& member) { kernel(op, member); });
}

void py_uniforms(const CpuArray& numbers_, const CpuArray& seeds_, const CpuArray& positions_) {
  const char* name = "uniforms";
  const Array numbers(name, "numbers", numbers_), seeds(name, "seeds", seeds_);
  const Array positions(name, "positions", positions_);
  const int64_t n = seeds.of(Scalar::kI64).shape({kAny}).contiguous().size(0);
  positions.of(Scalar::kI64).shape({n}).contiguous();
  double* number = numbers.of(Scalar::kF64).shape({n}).contiguous().data<double>();
  const auto* seed = seeds.data<const uint64_t>();
  const auto* position = positions.data<const uint64_t>();
  for (int64_t i = 0; i < n; ++i) number[i] = uniform(seed[i], position[i]);
}

}  // namespace

void bind_sampling(nb::module_& module) {
  const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
  module.def("greedy", &py_greedy, array("token_ids"), array("logits"));
  module.def("sample", &py_sample, array("token_ids"), array("logits"), array("temperature"),
             array("min_p"), array("top_k"), array("top_p"), array("number"));
  module.def("logprobs", &py_logprobs, array("own"), array("ranks"), array("top"), array("top_ids"),
             array("logits"), array("rows"), array("token_ids"));
  module.def("uniforms", &py_uniforms, array("numbers"), array("seeds"), array("positions"));
}

}  // namespace rtp
