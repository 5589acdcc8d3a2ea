#include "prefix_match.h"

#include <algorithm>
#include <bit>
#include <vector>

namespace rtp {
namespace {

namespace nb = nanobind;

constexpr int64_t kWordBits = 64;
constexpr int64_t kFewWords = 16;

// Three sets of holders, in words.
class Sets {
 public:
  explicit Sets(int64_t num_slots)
      : num_slots_(num_slots), num_words_((num_slots + kWordBits - 1) / kWordBits) {
    if (num_words_ > kFewWords) more_.resize(static_cast<size_t>(3 * num_words_));
    words_ = num_words_ > kFewWords ? more_.data() : few_;
    std::fill_n(here(), num_words_, ~uint64_t{0});
  }

  uint64_t* here() { return words_; }              // who has all blocks so far; all at first
  uint64_t* has() { return words_ + num_words_; }  // who has the next one
  uint64_t* also() { return words_ + 2 * num_words_; }
  int64_t num_words() const { return num_words_; }

  // The bits of an integer that is not negative.
  void read(PyObject* integer, uint64_t* words) const {
    if (!PyLong_Check(integer)) throw nb::type_error("match_prefix: holders must be integers");
    unsigned char* bytes = reinterpret_cast<unsigned char*>(words);
    const size_t size = static_cast<size_t>(num_words_) * sizeof(uint64_t);
#if PY_VERSION_HEX >= 0x030D0000
    const int flags = Py_ASNATIVEBYTES_LITTLE_ENDIAN | Py_ASNATIVEBYTES_UNSIGNED_BUFFER;
    const auto needed = PyLong_AsNativeBytes(integer, bytes, static_cast<Py_ssize_t>(size), flags);
    if (needed < 0) nb::raise_python_error();
    const bool is_too_long = needed > static_cast<Py_ssize_t>(size);
#else
    auto* number = reinterpret_cast<PyLongObject*>(integer);
    if (_PyLong_AsByteArray(number, bytes, size, 1, 0) != 0) nb::raise_python_error();
    const bool is_too_long = false;
#endif
    const int64_t used = num_slots_ % kWordBits;  // of the last word
    if (is_too_long || (used != 0 && words[num_words_ - 1] >> used != 0)) {
      throw nb::value_error("match_prefix: a block has a holder without a slot");
    }
  }

 private:
  int64_t num_slots_, num_words_;
  uint64_t* words_;
  uint64_t few_[3 * kFewWords];
  std::vector<uint64_t> more_;
};

PyObject* find(const nb::dict& masks, PyObject* key) {
  PyObject* found = PyDict_GetItemWithError(masks.ptr(), key);
  if (found == nullptr && PyErr_Occurred()) nb::raise_python_error();
  return found;
}

void write(int64_t word, uint64_t bits, int64_t length, int64_t* lengths) {
  for (; bits != 0; bits &= bits - 1) lengths[word * kWordBits + std::countr_zero(bits)] = length;
}

// Whether all that are here have the next block, too.
bool stays(Sets& sets) {
  uint64_t leaving = 0;
  for (int64_t i = 0; i < sets.num_words(); ++i) leaving |= sets.here()[i] & ~sets.has()[i];
  return leaving == 0;
}

// Whoever does not have it drops out, with `length` blocks; whether anybody is left.
bool drop(Sets& sets, int64_t length, int64_t* lengths) {
  uint64_t left = 0;
  for (int64_t i = 0; i < sets.num_words(); ++i) {
    const uint64_t here = sets.here()[i], stay = here & sets.has()[i];
    if (length > 0) write(i, here ^ stay, length, lengths);
    sets.here()[i] = stay;
    left |= stay;
  }
  return left != 0;
}

}  // namespace

void match_prefix(nb::tuple hashes, nb::dict held, nb::dict assumed, int64_t* lengths,
                  int64_t num_slots) {
  Sets sets(num_slots);
  const Py_ssize_t count = PyTuple_GET_SIZE(hashes.ptr());
  const bool has_assumed = assumed.size() != 0;
  PyObject* last = nullptr;  // a mask that all who are here are in
  for (Py_ssize_t at = 0; at < count; ++at) {
    PyObject* key = PyTuple_GET_ITEM(hashes.ptr(), at);
    PyObject* mask = find(held, key);
    if (mask != nullptr && mask == last) continue;  // most blocks of a chain have the same
    std::fill_n(sets.has(), sets.num_words(), uint64_t{0});
    if (mask != nullptr) sets.read(mask, sets.has());
    if (at > 0 && stays(sets)) {
      last = mask;
      continue;
    }
    last = nullptr;
    if (PyObject* also = has_assumed ? find(assumed, key) : nullptr) {
      sets.read(also, sets.also());
      for (int64_t i = 0; i < sets.num_words(); ++i) sets.has()[i] |= sets.also()[i];
    }
    if (!drop(sets, at, lengths)) return;
  }
  if (count > 0) {
    for (int64_t i = 0; i < sets.num_words(); ++i) write(i, sets.here()[i], count, lengths);
  }
}

}  // namespace rtp
