// Bindings of the Master's arithmetic. They keep the GIL: a call takes a microsecond, and a thread
// that lets it go may wait milliseconds for it.
#include <nanobind/nanobind.h>

#include <algorithm>
#include <utility>

#include "../cpu/bindings.h"
#include "column.h"
#include "prefix_match.h"
#include "priced.h"
#include "worker_numbers.h"

namespace rtp {
namespace {

constexpr int kRows = 3;  // of doubles, and of integers, that a decision gets

void require(bool is_right, const char* what) {
  if (!is_right) throw nb::value_error(what);
}

// The columns of all workers, bound once; keeps their memory.
class WorkerNumbers {
 public:
  WorkerNumbers(nb::handle num_blocks, nb::handle num_free_blocks, nb::handle reserved_blocks,
                nb::handle num_in_flight, nb::handle num_decoding, nb::handle pending_s,
                nb::handle head_s, nb::handle head_start_s, nb::handle base_s, nb::handle token_s,
                nb::handle attention_s)
      : num_blocks_("num_blocks", num_blocks),
        num_free_blocks_("num_free_blocks", num_free_blocks),
        reserved_blocks_("reserved_blocks", reserved_blocks),
        num_in_flight_("num_in_flight", num_in_flight),
        num_decoding_("num_decoding", num_decoding),
        pending_s_("pending_s", pending_s),
        head_s_("head_s", head_s),
        head_start_s_("head_start_s", head_start_s),
        base_s_("base_s", base_s),
        token_s_("token_s", token_s),
        attention_s_("attention_s", attention_s) {
    for (const int64_t size :
         {num_free_blocks_.size(), reserved_blocks_.size(), num_in_flight_.size(),
          num_decoding_.size(), pending_s_.size(), head_s_.size(), head_start_s_.size(),
          base_s_.size(), token_s_.size(), attention_s_.size()}) {
      require(size == num_blocks_.size(), "WorkerNumbers: columns must be equally long");
    }
  }

  int64_t free_blocks(nb::handle free, nb::handle slots, int64_t demand) const {
    const OutInts out("free", free);
    const Ints taken("slots", slots);
    require(out.size() == taken.size(), "free_blocks: free and slots must be equally long");
    require_slots(taken, num_blocks_.size());
    return rtp::free_blocks(columns(), taken.data(), taken.size(), demand, out.data());
  }

  int64_t of(nb::handle floats, nb::handle ints, nb::handle slots, nb::handle free,
             nb::handle cached_blocks, int64_t num_tokens, int64_t block_size, double now) const {
    const OutFloats out_floats("floats", floats);
    const OutInts out_ints("ints", ints);
    const Ints taken("slots", slots), left("free", free), cached("cached_blocks", cached_blocks);
    const int64_t count = taken.size();
    require(out_floats.size() == kRows * count && out_ints.size() == kRows * count,
            "of: floats and ints must be three rows, as long as slots");
    require(left.size() == count, "of: free and slots must be equally long");
    require_slots(taken, std::min(num_blocks_.size(), cached.size()));
    double* f = out_floats.data();
    int64_t* i = out_ints.data();
    const Numbers out = {f, f + count, f + 2 * count, i, i + count, i + 2 * count};
    return worker_numbers(columns(), {num_tokens, block_size, now}, taken.data(), count,
                          cached.data(), left.data(), out);
  }

 private:
  static void require_slots(const Ints& slots, int64_t num_slots) {
    const int64_t* first = slots.data();
    require(std::all_of(first, first + slots.size(),
                        [=](int64_t slot) { return slot >= 0 && slot < num_slots; }),
            "slots: there are no such workers");
  }

  WorkerColumns columns() const {
    return {num_blocks_.data(),    num_free_blocks_.data(), reserved_blocks_.data(),
            num_in_flight_.data(), num_decoding_.data(),    pending_s_.data(),
            head_s_.data(),        head_start_s_.data(),    base_s_.data(),
            token_s_.data(),       attention_s_.data()};
  }

  Ints num_blocks_, num_free_blocks_, reserved_blocks_, num_in_flight_, num_decoding_;
  Floats pending_s_, head_s_, head_start_s_, base_s_, token_s_, attention_s_;
};

nb::list py_priced(nb::handle costs, nb::handle wait_s, nb::handle prefill_s, nb::handle load_s,
                   nb::handle num_decoding, nb::handle crowds, nb::handle free_fraction,
                   double mean_s, double fleet_price, double queue_price, double decode_price) {
  const OutFloats out("costs", costs);
  const Floats wait("wait_s", wait_s), prefill("prefill_s", prefill_s), load("load_s", load_s);
  const Floats crowd("crowds", crowds), left("free_fraction", free_fraction);
  const Ints decoding("num_decoding", num_decoding);
  const int64_t count = out.size();
  for (const int64_t size :
       {wait.size(), prefill.size(), load.size(), decoding.size(), crowd.size(), left.size()}) {
    require(size == count && count > 0, "priced: arrays must be equally long, and not empty");
  }
  const Workloads workers = {wait.data(),  prefill.data(), load.data(), decoding.data(),
                             crowd.data(), left.data(),    count};
  nb::list found;
  for (const int64_t each :
       priced(workers, {fleet_price, queue_price, decode_price}, mean_s, out.data())) {
    found.append(each);
  }
  return found;
}

void py_match_prefix(nb::handle lengths, nb::tuple hashes, nb::dict held, nb::dict assumed) {
  const OutInts out("lengths", lengths);
  match_prefix(std::move(hashes), std::move(held), std::move(assumed), out.data(), out.size());
}

}  // namespace

void bind_routing(nb::module_& module) {
  nb::class_<WorkerNumbers>(module, "WorkerNumbers")
      .def(nb::init<nb::handle, nb::handle, nb::handle, nb::handle, nb::handle, nb::handle,
                    nb::handle, nb::handle, nb::handle, nb::handle, nb::handle>(),
           nb::arg("num_blocks"), nb::arg("num_free_blocks"), nb::arg("reserved_blocks"),
           nb::arg("num_in_flight"), nb::arg("num_decoding"), nb::arg("pending_s"),
           nb::arg("head_s"), nb::arg("head_start_s"), nb::arg("base_s"), nb::arg("token_s"),
           nb::arg("attention_s"))
      .def("free_blocks", &WorkerNumbers::free_blocks, nb::arg("free"), nb::arg("slots"),
           nb::arg("demand"))
      .def("of", &WorkerNumbers::of, nb::arg("floats"), nb::arg("ints"), nb::arg("slots"),
           nb::arg("free"), nb::arg("cached_blocks"), nb::arg("num_tokens"), nb::arg("block_size"),
           nb::arg("now"));
  module.def("match_prefix", &py_match_prefix, nb::arg("lengths"), nb::arg("hashes"),
             nb::arg("held"), nb::arg("assumed"));
  module.def("priced", &py_priced, nb::arg("costs"), nb::arg("wait_s"), nb::arg("prefill_s"),
             nb::arg("load_s"), nb::arg("num_decoding"), nb::arg("crowds"),
             nb::arg("free_fraction"), nb::arg("mean_s"), nb::arg("fleet_price"),
             nb::arg("queue_price"), nb::arg("decode_price"));
}

}  // namespace rtp
