#include "cuda/runtime.h"

#include "cuda/driver_info.h"

namespace jaxcoll::cuda {

Status ToStatus(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return Status();
  std::string text = what + ": " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error);
  switch (error) {
    case cudaErrorMemoryAllocation:
      text +=
          "; leave room on the GPU beside XLA's pool (XLA_PYTHON_CLIENT_MEM_FRACTION) or ask for "
          "less (JAXCOLL_CUDA_WORKSPACE_MIB)";
      break;
    case cudaErrorInsufficientDriver:
      text += "; install a driver for CUDA " + std::to_string(CUDART_VERSION / 1000) +
              " or build jaxcoll with an older toolkit";
      break;
    case cudaErrorNoKernelImageForDevice:
      text +=
          "; this build has no code for this GPU: rebuild with "
          "-DCMAKE_CUDA_ARCHITECTURES=native";
      break;
    default:
      break;
  }
  return Status(StatusCode::kInternal, text);
}

DeviceScope::DeviceScope(int ordinal) {
  int current = -1;
  if (cudaGetDevice(&current) == cudaSuccess && current == ordinal) return;
  before_ = current;
  (void)cudaSetDevice(ordinal);  // what follows fails if this did
}

DeviceScope::~DeviceScope() {
  if (before_ >= 0) (void)cudaSetDevice(before_);
}

SetupScope::SetupScope(int ordinal) {
  (void)cudaGetDevice(&before_);
  (void)cudaThreadExchangeStreamCaptureMode(&mode_);
  (void)cudaSetDevice(ordinal);
}

SetupScope::~SetupScope() {
  if (before_ >= 0) (void)cudaSetDevice(before_);
  (void)cudaThreadExchangeStreamCaptureMode(&mode_);
}

DriverInfo GetDriverInfo() {
  DriverInfo info;
  (void)cudaRuntimeGetVersion(&info.runtime_version);
  (void)cudaDriverGetVersion(&info.driver_version);  // 0 where there is no driver
  const cudaError_t error = cudaGetDeviceCount(&info.devices);
  if (error != cudaSuccess) {
    info.devices = 0;
    info.problem = cudaGetErrorString(error);
    (void)cudaGetLastError();  // it is not the next call's
    return info;
  }
  info.driver = true;
  return info;
}

}  // namespace jaxcoll::cuda
