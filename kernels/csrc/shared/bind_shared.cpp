// Bindings of shared memory. Memory comes by address: whoever has it checks it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "../cpu/bindings.h"
#include "../cpu/rank_sum.h"
#include "collectives.h"
#include "step_ring.h"

namespace rtp {
namespace {

namespace nb = nanobind;
using Unlocked = nb::call_guard<nb::gil_scoped_release>;

void* memory(uintptr_t address) { return reinterpret_cast<void*>(address); }

const char* name_of(End how) {
  switch (how) {
    case End::kTimeout:
      return "timeout";
    case End::kLost:
      return "lost";
    case End::kAborted:
      return "aborted";
    case End::kClosed:
      return "closed";
  }
  return "";
}

void require_range(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return;
  throw std::invalid_argument(std::string(name) + " must be from " + std::to_string(low) + " to " +
                              std::to_string(high) + ", got " + std::to_string(value));
}

void bind_ended(nb::module_& module) {
  nb::object type = nb::exception<Ended>(module, "Ended");
  nb::register_exception_translator(
      [](const std::exception_ptr& error, void* type) {
        try {
          std::rethrow_exception(error);
        } catch (const Ended& ended) {
          PyErr_SetObject(static_cast<PyObject*>(type),
                          nb::make_tuple(name_of(ended.how), ended.rank).ptr());
        }
      },
      type.ptr());
}

void bind_group(nb::module_& module) {
  nb::class_<RankGroup>(module, "RankGroup")
      .def(
          "__init__",
          [](RankGroup* group, int descriptor, int rank, int size, int64_t slot_bytes,
             double timeout_s) {
            require_range("size", size, 1, kMaxRanks);
            require_range("rank", rank, 0, size - 1);
            require_range("slot_bytes", slot_bytes, 1024, int64_t{1} << 40);
            new (group) RankGroup(descriptor, rank, size, slot_bytes, timeout_s);
          },
          nb::arg("descriptor"), nb::arg("rank"), nb::arg("size"), nb::arg("slot_bytes"),
          nb::arg("timeout_s"))
      .def_static("file_bytes", &RankGroup::file_bytes, nb::arg("size"), nb::arg("slot_bytes"))
      .def_prop_ro("rank", &RankGroup::rank)
      .def_prop_ro("size", &RankGroup::size)
      .def_prop_ro("slot_bytes", &RankGroup::slot_bytes)
      .def("has_all", &RankGroup::has_all)
      .def("abort", &RankGroup::abort)
      .def("close", &RankGroup::close)
      .def("barrier", &barrier, Unlocked())
      .def(
          "all_reduce",
          [](RankGroup& group, uintptr_t x, int64_t count, bool is_bf16) {
            all_reduce(group, memory(x), count, is_bf16 ? DType::kBf16 : DType::kF32);
          },
          nb::arg("x"), nb::arg("count"), nb::arg("is_bf16"), Unlocked())
      .def(
          "all_gather",
          [](RankGroup& group, uintptr_t out, uintptr_t x, int64_t bytes) {
            all_gather(group, memory(out), memory(x), bytes);
          },
          nb::arg("out"), nb::arg("x"), nb::arg("num_bytes"), Unlocked())
      .def(
          "broadcast",
          [](RankGroup& group, uintptr_t x, int64_t bytes, int root) {
            broadcast(group, memory(x), bytes, root);
          },
          nb::arg("x"), nb::arg("num_bytes"), nb::arg("root"), Unlocked());
  nb::class_<AllToAll>(module, "AllToAll")
      .def(
          "__init__",
          [](AllToAll* exchange, RankGroup& group, uintptr_t rows, int64_t row_bytes,
             std::vector<int64_t> counts) {
            const nb::gil_scoped_release release;
            new (exchange) AllToAll(group, memory(rows), row_bytes, std::move(counts));
          },
          nb::arg("group"), nb::arg("rows"), nb::arg("row_bytes"), nb::arg("counts"),
          nb::keep_alive<1, 2>())
      .def("counts", &AllToAll::counts)
      .def(
          "receive", [](AllToAll& exchange, uintptr_t out) { exchange.receive(memory(out)); },
          nb::arg("out"), Unlocked());
}

void bind_ring(nb::module_& module) {
  module.def("ring_file_bytes", &StepRing::file_bytes, nb::arg("num_readers"),
             nb::arg("ring_bytes"));
  nb::class_<RingWriter>(module, "RingWriter")
      .def(nb::init<int, int, int64_t>(), nb::arg("descriptor"), nb::arg("num_readers"),
           nb::arg("ring_bytes"))
      .def("has_all", &RingWriter::has_all)
      .def(
          "write",
          [](RingWriter& writer, const nb::bytes& message, double timeout_s) {
            const std::string_view bytes(message.c_str(), message.size());
            const nb::gil_scoped_release release;
            writer.write(bytes, timeout_s);
          },
          nb::arg("message"), nb::arg("timeout_s"))
      .def("check", &RingWriter::check)
      .def("close", &RingWriter::close);
  nb::class_<RingReader>(module, "RingReader")
      .def(nb::init<int, int, int, int64_t>(), nb::arg("descriptor"), nb::arg("reader"),
           nb::arg("num_readers"), nb::arg("ring_bytes"))
      .def("has_all", &RingReader::has_all)
      .def(
          "read",
          [](RingReader& reader, double timeout_s) -> nb::object {
            std::string message;
            bool is_there;
            {
              const nb::gil_scoped_release release;
              is_there = reader.read(message, timeout_s);
            }
            if (!is_there) return nb::none();
            return nb::bytes(message.data(), message.size());
          },
          nb::arg("timeout_s"))
      .def("close", &RingReader::close);
}

}  // namespace

void bind_shared(nb::module_& module) {
  bind_ended(module);
  bind_group(module);
  bind_ring(module);
}

}  // namespace rtp
