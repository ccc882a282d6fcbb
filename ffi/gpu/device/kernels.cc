#include "gpu/device/kernels.h"

#include <initializer_list>

namespace jaxcoll::cuda {
namespace {

using Lookup = const void* (*)(DType);

const void* FindIn(std::initializer_list<Lookup> families, DType dtype) {
  if (dtype == DType::kBool) dtype = DType::kUint8;
  for (const Lookup family : families) {
    if (const void* kernel = family(dtype)) return kernel;
  }
  return nullptr;
}

}  // namespace

const void* FunctionOf(const Kernel& kernel) {
  switch (kernel.family) {
    case Kernel::kMove:
      return MoveKernel();
    case Kernel::kRagged:
      return RaggedKernel();
    case Kernel::kRaggedExchange:
      return RaggedExchangeKernel();
    case Kernel::kReduce:
      if (const void* hot = HotReduceKernel(kernel.dtype, kernel.op)) return hot;
      return FindIn({FloatReduceKernel, Float8ReduceKernel, IntegerReduceKernel}, kernel.dtype);
    case Kernel::kInterpreter:
      return FindIn({FloatInterpreter, Float8Interpreter, IntegerInterpreter}, kernel.dtype);
  }
  return nullptr;
}

int ThreadsOf(const Kernel& kernel) {
  const bool waits =
      kernel.family == Kernel::kInterpreter || kernel.family == Kernel::kRaggedExchange;
  return waits ? kInterpreterThreads : kThreads;
}

}  // namespace jaxcoll::cuda
