// Between XLA's FFI types and ours: what the handlers of all platforms share.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "base/status.h"
#include "call/call_site.h"
#include "call/call_spec.h"
#include "xla/ffi/api/ffi.h"

namespace jaxcoll {

// The one place where a Status becomes an XLA error.
::xla::ffi::Error ToFfiError(const Status& status);

StatusOr<CallSpec> ReadCallSpec(::xla::ffi::Dictionary attributes);

// Of the first `argument_count` operands and all results.
StatusOr<CallShape> ShapeOf(::xla::ffi::RemainingArgs arguments, size_t argument_count,
                            ::xla::ffi::RemainingRets results);

// Most calls have one operand, gradients have hundreds.
template <typename T>
class PointerList {
 public:
  explicit PointerList(size_t size) : size_(size) {
    if (size > few_.size()) many_.resize(size);
  }
  T& operator[](size_t i) { return many_.empty() ? few_[i] : many_[i]; }
  std::span<T const> span() const { return {many_.empty() ? few_.data() : many_.data(), size_}; }

 private:
  size_t size_;
  std::array<T, 8> few_;
  std::vector<T> many_;
};

}  // namespace jaxcoll
