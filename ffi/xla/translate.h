// Conversions between XLA's FFI types and ours, shared by the handlers of all platforms.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "base/status.h"
#include "call/call_core.h"
#include "xla/ffi/api/ffi.h"

namespace jaxcoll {

// The one place where a Status becomes an XLA error.
::xla::ffi::Error ToFfiError(const Status& status);

StatusOr<CallSpec> ReadCallSpec(::xla::ffi::Dictionary attributes);

// The state that instantiate makes: one per custom-call instruction, shared by the devices of the
// process. `Site` is the platform's call site.
template <typename Site>
struct Instruction {
  inline static ::xla::ffi::TypeId id = {};
  inline static ::xla::ffi::TypeInfo info = ::xla::ffi::MakeTypeInfo<Instruction>();

  std::unique_ptr<Site> site;
};

template <typename Site>
::xla::ffi::ErrorOr<std::unique_ptr<Instruction<Site>>> Instantiate(
    ::xla::ffi::Dictionary attributes) {
  StatusOr<CallSpec> spec = ReadCallSpec(attributes);
  if (!spec.ok()) return ::xla::ffi::Unexpected(ToFfiError(spec.status()));
  StatusOr<std::unique_ptr<Site>> site = Site::Create(std::move(*spec));
  if (!site.ok()) return ::xla::ffi::Unexpected(ToFfiError(site.status()));
  auto instruction = std::make_unique<Instruction<Site>>();
  instruction->site = std::move(*site);
  return instruction;
}

// The operand behind the call's vectors, in which the program says its logical id: one uint32, in
// the platform's memory. Null if the program does not. Fails for any other number of operands.
StatusOr<const uint32_t*> LogicalIdOf(const CallCore& core, ::xla::ffi::RemainingArgs arguments,
                                      ::xla::ffi::RemainingRets results);

// The shape of the operands, without the logical id, and of the results.
StatusOr<CallShape> ShapeOf(const CallCore& core, ::xla::ffi::RemainingArgs arguments,
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

// The addresses of the same.
struct CallBuffers {
  CallBuffers(const CallCore& core, ::xla::ffi::RemainingArgs arguments,
              ::xla::ffi::RemainingRets results);
  PointerList<const void*> inputs;
  PointerList<void*> outputs;
};

}  // namespace jaxcoll
