#include "support/device_world.h"

#include "gpu/device/interpreter.h"
#include "gpu/device/ragged_exchange.h"

namespace jaxcoll::cuda {
namespace {

template <int kDType = 0>
bool Interpret(HostPolicy& policy, const TableCall& call, int32_t block) {
  if constexpr (kDType == kDTypeCount) {
    return false;
  } else {
    if (call.dtype != kDType) return Interpret<kDType + 1>(policy, call, block);
    return Interpreter<HostPolicy, static_cast<DType>(kDType)>(policy, call, block).Run();
  }
}

}  // namespace

bool RunBlock(HostPolicy& policy, const DeviceCall& call, int32_t block) {
  if (const auto* const ragged = std::get_if<RaggedTableCall>(&call)) {
    return RaggedExchange<HostPolicy>(policy, *ragged, block).Run();
  }
  return Interpret(policy, std::get<TableCall>(call), block);
}

}  // namespace jaxcoll::cuda
