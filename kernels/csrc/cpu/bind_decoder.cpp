// Binding of a whole decoder: token ids to logits, or to the ids of the largest ones, in one call.
#include <nanobind/stl/vector.h>

#include <memory>

#include "bindings.h"
#include "greedy_head.h"
#include "linear_weight.h"
#include "on_team.h"
#include "step_arguments.h"

namespace rtp {
namespace {

// A step's arrays as Python hands them over.
struct DecoderArrays {
  const CpuArray& token_ids;  // [num_tokens]
  const CpuArray& rows;       // [n], of the tokens whose logits are wanted
  const CpuArray& positions;
  const CpuArray& slots;
  SequenceArrays sequences;
};

// Embedding, sublayers, final norm and output head over one KV cache. Keeps the memory of its
// arrays; its weights and sublayers are kept alive by the binding.
class Decoder {
 public:
  Decoder(const LinearWeight& embedding, const std::vector<const BoundSublayer*>& sublayers,
          const CpuArray& norm, float eps, const LinearWeight& head, const CpuArray& kv_cache)
      : embedding_(embedding.projection().weight),
        head_(head),
        sublayers_(sublayers_of(sublayers)),
        norm_array_(norm),
        kv_cache_(kv_cache) {
    const PackedMatrix& out = head.projection().weight;
    require(out.k == embedding_.k && out.dtype == embedding_.dtype,
            "Decoder: embedding and head must have the same type and columns");
    norm_ = bind_norm("Decoder", "norm", norm, eps, out.dtype, out.k);
  }

  void logits(const CpuArray& out_, const DecoderArrays& arrays) const {
    const Checked checked = check("Decoder.logits", arrays);
    const Array out("Decoder.logits", "out", out_);
    out.of(Scalar::kF32).shape({checked.num_rows, vocab_size()}).contiguous();
    const nb::gil_scoped_release release;
    const Residual residual = compute(checked);
    multiply(head_product(checked, residual, out.data<float>()));
  }

  void greedy(const CpuArray& out_, const DecoderArrays& arrays) const {
    const Checked checked = check("Decoder.greedy", arrays);
    const Array out("Decoder.greedy", "out", out_);
    out.of(Scalar::kI32).shape({checked.num_rows}).contiguous();
    const nb::gil_scoped_release release;
    const Residual residual = compute(checked);
    rtp::greedy(out.data<int32_t>(), head_product(checked, residual, nullptr), head_.screen());
  }

 private:
  // [num_tokens, hidden_size] after the last layer.
  using Residual = std::unique_ptr<char[]>;

  struct Checked {
    Step step;
    const int64_t* token_ids;
    const int64_t* rows;
    int64_t num_rows;
  };

  int64_t vocab_size() const { return head_.projection().weight.n; }

  Checked check(const char* op, const DecoderArrays& arrays) const {
    const Array token_ids(op, "token_ids", arrays.token_ids), rows(op, "rows", arrays.rows);
    const int64_t num_tokens = token_ids.of(Scalar::kI64).shape({kAny}).contiguous().size(0);
    const int64_t num_rows = rows.of(Scalar::kI64).shape({kAny}).contiguous().size(0);
    Checked checked{check_step(op, sublayers_, {embedding_.dtype, num_tokens, embedding_.k},
                               {arrays.positions, kv_cache_, arrays.slots, arrays.sequences}),
                    token_ids.data<const int64_t>(), rows.data<const int64_t>(), num_rows};
    check_indices("token_ids", checked.token_ids, num_tokens, embedding_.n);
    check_indices("rows", checked.rows, num_rows, num_tokens);
    return checked;
  }

  Residual compute(const Checked& checked) const {
    Step step = checked.step;
    const int64_t itemsize = step.dtype == DType::kBf16 ? 2 : 4;
    auto residual =
        std::make_unique_for_overwrite<char[]>(step.num_tokens * embedding_.k * itemsize);
    gather_rows(residual.get(), checked.token_ids, step.num_tokens, embedding_);
    step.plan = &plan_for(step.geometry);
    run_sublayers(sublayers_, step, residual.get());
    return residual;
  }

  // Logits of the rows: [num_rows, vocab_size].
  Linear head_product(const Checked& checked, const Residual& residual, float* logits) const {
    return head_.logits_product(logits, residual.get(), embedding_.k, checked.rows,
                                checked.num_rows, norm_.weight, norm_.eps);
  }

  const PackedMatrix embedding_;
  const LinearWeight& head_;
  const Sublayers sublayers_;
  const CpuArray norm_array_, kv_cache_;
  Norm norm_;
};

template <auto kMethod>
void call(const Decoder& decoder, const CpuArray& out, const CpuArray& token_ids,
          const CpuArray& rows, const CpuArray& positions, const CpuArray& slots,
          const CpuArray& block_tables, const CpuArray& query_start_loc, const CpuArray& seq_lens,
          int64_t window, const CpuArray& ancestor_mask) {
  (decoder.*kMethod)(out, {token_ids,
                           rows,
                           positions,
                           slots,
                           {block_tables, query_start_loc, seq_lens, window, ancestor_mask}});
}

}  // namespace

void bind_decoder(nb::module_& module) {
  const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
  nb::class_<Decoder> decoder(module, "Decoder");
  decoder.def(nb::init<const LinearWeight&, const std::vector<const BoundSublayer*>&,
                       const CpuArray&, float, const LinearWeight&, const CpuArray&>(),
              nb::arg("embedding"), nb::arg("sublayers"), array("norm"), nb::arg("eps"),
              nb::arg("head"), array("kv_cache"), nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(),
              nb::keep_alive<1, 6>());
  const auto add = [&](const char* name, auto method) {
    decoder.def(name, method, array("out"), array("token_ids"), array("rows"), array("positions"),
                array("slots"), array("block_tables"), array("query_start_loc"), array("seq_lens"),
                nb::arg("window"), array("ancestor_mask").none());
  };
  add("logits", &call<&Decoder::logits>);
  add("greedy", &call<&Decoder::greedy>);
}

}  // namespace rtp
