// CUDA's runtime.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "base/status.h"
#include "gpu/abi/runtime.h"

namespace jaxcoll::cuda {

// "what: cudaErrorX: text", with what to do about the usual ones.
Status ToStatus(cudaError_t error, const std::string& what);

// Makes a device current during its lifetime, and permits calls that are forbidden during graph
// capture: they are not part of the captured work.
class SetupScope {
 public:
  explicit SetupScope(int ordinal);
  ~SetupScope();
  SetupScope(const SetupScope&) = delete;
  SetupScope& operator=(const SetupScope&) = delete;

 private:
  int before_ = -1;
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Makes a device current during its lifetime.
class DeviceScope {
 public:
  explicit DeviceScope(int ordinal);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int before_ = -1;
};

}  // namespace jaxcoll::cuda
