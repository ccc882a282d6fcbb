#include "call/call_core.h"

#include <utility>

namespace jaxcoll {

StatusOr<CallCore> CallCore::Create(CallSpec spec) {
  StatusOr<GroupTable> groups = GroupTable::Create(spec);
  if (!groups.ok()) return groups.status();
  CallCore core(std::move(spec), std::move(*groups));
  if (!core.ragged()) {
    if (Status status = CheckSchedule(core.spec_); !status.ok()) return status;
  }
  return core;
}

CallCore::HeldNumber::HeldNumber(Interprocess& owner, std::string text)
    : processes(owner), signature(std::move(text)), number(processes.TakeNumber(signature)) {}

CallCore::HeldNumber::~HeldNumber() { processes.ReturnNumber(signature, number); }

void CallCore::TakeNumber(Interprocess& processes, std::string_view engine) {
  number_ = std::make_unique<const HeldNumber>(processes, std::string(engine) + SignatureOf(spec_));
}

std::string CallCore::instruction() const {
  if (number_ == nullptr) return std::string();
  return number_->signature + "\nnumber " + std::to_string(number_->number.value);
}

std::string CallCore::OperandsText() const {
  std::string text = shape_.inputs[0].Text();
  if (!ragged() && shape_.inputs.size() > 1) {
    text += " and " + std::to_string(shape_.inputs.size() - 1) + " more";
  }
  return text;
}

std::string CallCore::Describe() const {
  std::string text = spec_.collective;
  if (!spec_.reduce_op.empty()) text += "(" + spec_.reduce_op + ")";
  if (!shape_.inputs.empty()) text += " of " + OperandsText();
  if (!spec_.label.empty()) text += " over " + spec_.label;
  return text + ", algorithm " + spec_.algorithm;
}

Status CallCore::Describe(const Status& status) const {
  if (status.ok()) return status;
  return Status(status.code(), Describe() + ": " + status.message());
}

}  // namespace jaxcoll
