// Binding of a whole decoder: token ids to logits, or to the ids of the largest ones, in one call.
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "bindings.h"
#include "greedy_head.h"
#include "linear_weight.h"
#include "narrowed_step.h"
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
    for (size_t i = 0; i < sublayers_.size(); ++i) {
      if (sublayers_[i]->num_heads()) last_layer_ = static_cast<int64_t>(i);
    }
    norm_ = bind_norm("Decoder", "norm", norm, eps, out.dtype, out.k);
  }

  void logits(const CpuArray& out_, const DecoderArrays& arrays) const {
    const Checked checked = check("Decoder.logits", arrays);
    const Array out("Decoder.logits", "out", out_);
    out.of(Scalar::kF32).shape({checked.num_rows, vocab_size()}).contiguous();
    const nb::gil_scoped_release release;
    const Wanted wanted = compute(checked);
    multiply(head_product(wanted, out.data<float>()));
  }

  void greedy(const CpuArray& out_, const DecoderArrays& arrays) const {
    const Checked checked = check("Decoder.greedy", arrays);
    const Array out("Decoder.greedy", "out", out_);
    out.of(Scalar::kI32).shape({checked.num_rows}).contiguous();
    const nb::gil_scoped_release release;
    const Wanted wanted = compute(checked);
    rtp::greedy(out.data<int32_t>(), head_product(wanted, nullptr), head_.screen());
  }

 private:
  // The stream after the last layer.
  struct Wanted {
    std::unique_ptr<char[]> stream;  // [*, hidden_size]
    const int64_t* rows;             // [num_rows]: those wanted of it; null: all, in order
    int64_t num_rows;
  };

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

  // Computing the last layer of so many tokens takes longer than writing their keys and values
  // apart from it.
  static constexpr int64_t kLeftOutTokens = 32;

  Wanted compute(const Checked& checked) const {
    Step step = checked.step;
    auto stream = memory(step.num_tokens);
    gather_rows(stream.get(), checked.token_ids, step.num_tokens, embedding_);
    step.plan = &plan_for(step.geometry);
    if (is_narrow(checked)) return compute_narrowed(checked, step, stream.get());
    run_sublayers(sublayers_, step, stream.get());
    return {std::move(stream), checked.rows, checked.num_rows};
  }

  bool is_narrow(const Checked& checked) const {
    const AttentionGeometry& geometry = checked.step.geometry;
    if (geometry.ancestor_mask || last_layer_ < 0) return false;
    if (checked.num_rows + kLeftOutTokens > checked.step.num_tokens) return false;
    const int64_t num_own = geometry.query_start_loc[geometry.num_seqs];
    return std::all_of(checked.rows, checked.rows + checked.num_rows,
                       [&](int64_t row) { return row < num_own; });
  }

  // Of the last layer's tokens those that are wanted, and keys and values of all.
  Wanted compute_narrowed(const Checked& checked, const Step& step, char* stream) const {
    const Sublayers first(sublayers_.begin(), sublayers_.begin() + last_layer_);
    const Sublayers last(sublayers_.begin() + last_layer_, sublayers_.end());
    run_sublayers(first, step, stream);
    write_cache(*last[0], step, stream);
    const int64_t count = checked.num_rows, row_bytes = this->row_bytes();
    auto wanted = memory(count);
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(wanted.get() + i * row_bytes, stream + checked.rows[i] * row_bytes, row_bytes);
    }
    if (count) {
      const NarrowedStep narrowed(step, checked.rows, count);
      Step last_step = narrowed.step();
      last_step.plan = &plan_for(last_step.geometry);
      run_sublayers(last, last_step, wanted.get());
    }
    return {std::move(wanted), nullptr, count};
  }

  int64_t row_bytes() const { return embedding_.k * (embedding_.dtype == DType::kBf16 ? 2 : 4); }

  std::unique_ptr<char[]> memory(int64_t num_tokens) const {
    return std::make_unique_for_overwrite<char[]>(num_tokens * row_bytes());
  }

  // Logits of the rows: [num_rows, vocab_size].
  Linear head_product(const Wanted& wanted, float* logits) const {
    return head_.logits_product(logits, wanted.stream.get(), embedding_.k, wanted.rows,
                                wanted.num_rows, norm_.weight, norm_.eps);
  }

  const PackedMatrix embedding_;
  const LinearWeight& head_;
  const Sublayers sublayers_;
  int64_t last_layer_ = -1;  // its first sublayer
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
