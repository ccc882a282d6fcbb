#include "gpu/host/runtime_cuda.h"

#include <cuda.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

#include "gpu/device/kernels.h"
#include "gpu/host/driver_info.h"

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

namespace {

// A function of the driver's, which is not linked with: there may be none. Null if it lacks it.
template <typename Function>
Function DriverFunction(const char* name, unsigned int version) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name, &found, version, cudaEnableDefault, &result);
  if (error != cudaSuccess || result != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<Function>(found);
}

// Work that a thread does on a stream of its own: the device's other streams go on meanwhile.
template <typename F>
Status OnOwnStream(const std::string& what, F enqueue) {
  cudaStream_t stream = nullptr;
  cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error != cudaSuccess) return ToStatus(error, "creating a stream");
  error = enqueue(stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  (void)cudaStreamDestroy(stream);
  return ToStatus(error, what);
}

// Since CUDA 11.7.
auto GetHandleForAddressRange() {
  return DriverFunction<decltype(&cuMemGetHandleForAddressRange)>("cuMemGetHandleForAddressRange",
                                                                  11070);
}

class TheRuntime final : public Runtime {
 public:
  StatusOr<int> MultiprocessorCount(int ordinal) override {
    int count = 0;
    const cudaError_t error =
        cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, ordinal);
    if (error != cudaSuccess) return ToStatus(error, "counting multiprocessors");
    return count;
  }

  StatusOr<bool> CanReach(int from, int to) override {
    int can = 0;
    const cudaError_t error = cudaDeviceCanAccessPeer(&can, from, to);
    if (error != cudaSuccess) return ToStatus(error, "asking for peer access");
    return can != 0;
  }

  Status EnableReach(int from, int to) override {
    const SetupScope scope(from);
    const cudaError_t error = cudaDeviceEnablePeerAccess(to, 0);
    if (error == cudaErrorPeerAccessAlreadyEnabled) {
      (void)cudaGetLastError();  // XLA has done it
      return Status();
    }
    return ToStatus(error, "enabling peer access");
  }

  StatusOr<unsigned char*> Allocate(int ordinal, uint64_t bytes) override {
    const SetupScope scope(ordinal);
    void* memory = nullptr;
    const cudaError_t error = cudaMalloc(&memory, bytes);
    if (error != cudaSuccess) {
      (void)cudaGetLastError();  // it is not the next call's
      return ToStatus(error, "allocating on GPU " + std::to_string(ordinal));
    }
    auto* const cleared = static_cast<unsigned char*>(memory);
    if (Status status = Clear(ordinal, cleared, bytes); !status.ok()) return status;
    return cleared;
  }

  // Errors have nobody to go to; after a trap everything fails.
  void Free(int ordinal, unsigned char* memory) override {
    const SetupScope scope(ordinal);
    (void)cudaFree(memory);
  }

  StatusOr<unsigned char*> AllocateHost(int ordinal, uint64_t bytes) override {
    const SetupScope scope(ordinal);
    void* memory = nullptr;
    const cudaError_t error =
        cudaHostAlloc(&memory, bytes, cudaHostAllocPortable | cudaHostAllocMapped);
    if (error != cudaSuccess) return ToStatus(error, "allocating pinned memory");
    std::memset(memory, 0, bytes);
    return static_cast<unsigned char*>(memory);
  }

  void FreeHost(unsigned char* memory) override { (void)cudaFreeHost(memory); }

  Status Clear(int ordinal, unsigned char* memory, uint64_t bytes) override {
    const SetupScope scope(ordinal);
    return OnOwnStream("clearing memory", [&](cudaStream_t stream) {
      return cudaMemsetAsync(memory, 0, bytes, stream);
    });
  }

  Status Upload(int ordinal, unsigned char* to, const void* from, uint64_t bytes) override {
    const SetupScope scope(ordinal);
    return OnOwnStream("copying a table to the GPU", [&](cudaStream_t stream) {
      return cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream);
    });
  }

  StatusOr<IpcHandle> Export(int ordinal, unsigned char* memory) override {
    const SetupScope scope(ordinal);
    cudaIpcMemHandle_t handle;
    static_assert(sizeof(handle) == sizeof(IpcHandle));
    const cudaError_t error = cudaIpcGetMemHandle(&handle, memory);
    if (error != cudaSuccess) return ToStatus(error, "exporting a workspace by CUDA IPC");
    IpcHandle bytes;
    std::memcpy(bytes.data(), &handle, sizeof(handle));
    return bytes;
  }

  // CUDA promises nothing of a handle that is opened twice.
  StatusOr<unsigned char*> Import(int ordinal, const IpcHandle& bytes) override {
    const SetupScope scope(ordinal);
    std::lock_guard lock(mutex_);
    for (auto& import : imports_) {
      if (import.ordinal != ordinal || import.handle != bytes) continue;
      ++import.count;
      return import.memory;
    }
    cudaIpcMemHandle_t handle;
    std::memcpy(&handle, bytes.data(), sizeof(handle));
    void* memory = nullptr;
    const cudaError_t error = cudaIpcOpenMemHandle(&memory, handle, cudaIpcMemLazyEnablePeerAccess);
    if (error != cudaSuccess) {
      (void)cudaGetLastError();
      return ToStatus(error, "opening a CUDA IPC handle");
    }
    imports_.push_back({ordinal, bytes, static_cast<unsigned char*>(memory), 1});
    return imports_.back().memory;
  }

  void CloseImport(int ordinal, unsigned char* memory) override {
    const SetupScope scope(ordinal);
    std::lock_guard lock(mutex_);
    const auto import = std::find_if(imports_.begin(), imports_.end(), [&](const Imported& i) {
      return i.ordinal == ordinal && i.memory == memory;
    });
    if (import == imports_.end() || --import->count > 0) return;
    (void)cudaIpcCloseMemHandle(memory);
    imports_.erase(import);
  }

  StatusOr<Allocation> AllocationOf(int ordinal, const void* memory) override {
    using AddressRange = CUresult (*)(CUdeviceptr*, size_t*, CUdeviceptr);
    using Attribute = CUresult (*)(void*, CUpointer_attribute, CUdeviceptr);
    static const auto range = DriverFunction<AddressRange>("cuMemGetAddressRange", 12000);
    static const auto attribute = DriverFunction<Attribute>("cuPointerGetAttribute", 12000);
    if (range == nullptr || attribute == nullptr) {
      return Status(StatusCode::kInternal, "the driver does not say where memory was allocated");
    }
    const SetupScope scope(ordinal);
    const auto at = reinterpret_cast<CUdeviceptr>(memory);
    CUdeviceptr base = 0;
    size_t bytes = 0;
    unsigned long long id = 0;
    CUresult error = range(&base, &bytes, at);
    if (error == CUDA_SUCCESS) error = attribute(&id, CU_POINTER_ATTRIBUTE_BUFFER_ID, at);
    if (error != CUDA_SUCCESS) {
      return Status(StatusCode::kInternal,
                    "asking where memory was allocated: CUresult " + std::to_string(error));
    }
    return Allocation{reinterpret_cast<unsigned char*>(base), bytes, id};
  }

  std::string WhyNoDmabuf(int ordinal) override {
    const auto attribute =
        DriverFunction<decltype(&cuDeviceGetAttribute)>("cuDeviceGetAttribute", 2000);
    const auto device_get = DriverFunction<decltype(&cuDeviceGet)>("cuDeviceGet", 2000);
    CUdevice device = 0;
    int can = 0;
    if (attribute == nullptr || device_get == nullptr || GetHandleForAddressRange() == nullptr ||
        device_get(&device, ordinal) != CUDA_SUCCESS ||
        attribute(&can, CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED, device) != CUDA_SUCCESS) {
      return "the driver does not support dma-bufs: they need a driver of CUDA 11.7 or later";
    }
    if (can != 0) return "";
    return "GPU " + std::to_string(ordinal) +
           " does not export dma-bufs: they need the open kernel modules of the driver and Linux "
           "5.12";
  }

  StatusOr<int> ExportDmabuf(int ordinal, unsigned char* memory, uint64_t bytes) override {
    const SetupScope scope(ordinal);
    int fd = -1;
    const CUresult result = GetHandleForAddressRange()(&fd, reinterpret_cast<CUdeviceptr>(memory),
                                                       bytes, CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD,
                                                       /*flags=*/0);
    if (result == CUDA_SUCCESS) return fd;
    return Status(StatusCode::kInternal, "cuMemGetHandleForAddressRange refuses " +
                                             std::to_string(bytes >> 10) + " KiB of GPU " +
                                             std::to_string(ordinal) + " with CUresult " +
                                             std::to_string(static_cast<int>(result)));
  }

  Status Preload(int ordinal, const Kernel& kernel) override {
    const SetupScope scope(ordinal);
    cudaFuncAttributes attributes;
    return ToStatus(cudaFuncGetAttributes(&attributes, FunctionOf(kernel)), "loading a kernel");
  }

  Status Start(int ordinal, void* stream, const Launch& launch) override {
    const DeviceScope scope(ordinal);
    const void* none = nullptr;
    void* arguments[] = {const_cast<void*>(launch.data()), &none};
    return ToStatus(cudaLaunchKernel(FunctionOf(launch.kernel), dim3(launch.blocks),
                                     dim3(ThreadsOf(launch.kernel)), arguments, 0,
                                     static_cast<cudaStream_t>(stream)),
                    "starting a kernel");
  }

 private:
  struct Imported {
    int ordinal;
    IpcHandle handle;
    unsigned char* memory;
    int count;
  };
  std::mutex mutex_;
  std::vector<Imported> imports_;  // guarded by mutex_
};

}  // namespace

Runtime& CudaRuntime() {
  static Runtime& runtime = *new TheRuntime;
  return runtime;
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
