// One custom-call instruction of one executable, as far as it is the same on every platform: its
// spec and groups, its operands, the number that tells it from equal instructions, and the words of
// its errors. CallSite (CPUs) and GpuCallSite each hold one; they differ in what starts a call.
//
// Thread rule: SetShape and TakeNumber by one thread, before others look.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"
#include "call/call_shape.h"
#include "call/call_spec.h"
#include "call/interprocess.h"

namespace jaxcoll {

class CallCore {
 public:
  // Fails for what can run on no platform: groups that are not whole, an unknown collective or
  // algorithm, a schedule that cannot be read. Builds no op list.
  static StatusOr<CallCore> Create(CallSpec spec);

  const CallSpec& spec() const { return spec_; }
  const GroupTable& groups() const { return groups_; }
  bool ragged() const { return spec_.collective == "ragged_all_to_all"; }
  // Operands of a call with so many results, without the logical id.
  size_t vector_operands(size_t results) const { return ragged() ? 6 : results; }

  // Where other processes take part: takes the number that tells this instruction from equal ones
  // of its executable, until the core is destroyed. `engine`: each counts its own.
  void TakeNumber(Interprocess& processes, std::string_view engine);
  // Equal in all processes, and different for each instruction; empty without a number.
  std::string instruction() const;
  uint64_t build() const { return number_ == nullptr ? 0 : number_->number.build; }

  // The shape that the instruction runs with. Describe() says it from then on.
  void SetShape(const CallShape& shape) { shape_ = shape; }
  const CallShape& shape() const { return shape_; }
  std::string OperandsText() const;  // "float32[2,3] and 4 more"
  // "all_reduce(sum) of float32[2,3] over axis 'x' (8 ranks), algorithm ring"
  std::string Describe() const;
  // An error of this call: with its description. Success stays success.
  Status Describe(const Status& status) const;

 private:
  struct HeldNumber {
    HeldNumber(Interprocess& processes, std::string signature);
    ~HeldNumber();
    HeldNumber(const HeldNumber&) = delete;
    HeldNumber& operator=(const HeldNumber&) = delete;
    Interprocess& processes;
    const std::string signature;
    const Interprocess::InstructionNumber number;
  };

  CallCore(CallSpec spec, GroupTable groups) : spec_(std::move(spec)), groups_(std::move(groups)) {}

  CallSpec spec_;
  GroupTable groups_;
  CallShape shape_;
  std::unique_ptr<const HeldNumber> number_;
};

}  // namespace jaxcoll
