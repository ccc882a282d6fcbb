// N ranks on one device, in one process: how every kernel is tested and measured with one GPU.
//
// kGrid plays all ranks in one cooperative launch (rank = blockIdx.y); kStreams launches each rank
// on a stream of its own, as devices would, and needs as many hardware queues
// (CUDA_DEVICE_MAX_CONNECTIONS) as ranks. Both run the kernels, plans and workspaces of real calls.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "call/call_shape.h"
#include "call/call_spec.h"
#include "gpu/host/gpu_communicator.h"
#include "gpu/host/group_call.h"

namespace jaxcoll::cuda {

enum class HarnessMode { kGrid, kStreams };

struct HarnessOptions {
  int ordinal = 0;
  HarnessMode mode = HarnessMode::kGrid;
  bool staged = false;
  bool interpret = false;  // by the interpreter, even where there is a kernel
  int max_blocks = 0;      // 0: as many as fit together
  double timeout_s = 30;
  uint64_t workspace_bytes = 64 << 20;
};

// Device memory of one rank's operands.
class DeviceBuffers {
 public:
  DeviceBuffers() = default;
  ~DeviceBuffers();
  DeviceBuffers(DeviceBuffers&& other) noexcept : pointers_(std::move(other.pointers_)) {
    other.pointers_.clear();
  }
  DeviceBuffers& operator=(DeviceBuffers&&) = delete;
  DeviceBuffers(const DeviceBuffers&) = delete;
  DeviceBuffers& operator=(const DeviceBuffers&) = delete;
  StatusOr<void*> Allocate(size_t bytes);

 private:
  std::vector<void*> pointers_;
};

class Harness {
 public:
  static StatusOr<std::unique_ptr<Harness>> Create(CallSpec spec, const CallShape& shape,
                                                   const HarnessOptions& options);
  ~Harness();
  Harness(const Harness&) = delete;
  Harness& operator=(const Harness&) = delete;

  int blocks() const { return call_->blocks(); }

  // inputs[rank][operand], of the sizes of the shape. Runs `calls` times on the same operands, the
  // outputs filled with 0xa5 before each, and returns outputs[rank][result] of the last.
  // `leave_out` >= 0 (kStreams): that rank never comes.
  StatusOr<std::vector<std::vector<std::string>>> Run(
      const std::vector<std::vector<std::string>>& inputs, int calls, int leave_out);

  // Seconds of one call, each from a replay of a graph of `chain` calls in a row, `samples` of
  // them. Operands rotate over `sets` of them, of which `chain` is a multiple. kGrid only.
  StatusOr<std::vector<double>> Time(int chain, int samples, int sets);

  // The words of the last run's kernels before they gave up.
  std::vector<std::string> Causes() const;

 private:
  Harness(CallSpec spec, CallShape shape, const HarnessOptions& options);
  Status Init();
  // One set of operands for all ranks, and what they launch.
  struct Set {
    std::vector<std::vector<void*>> inputs, outputs;  // by rank
    std::vector<void*> parameters;                    // by launch; device memory, by rank
  };
  int ranks() const { return static_cast<int>(spec_.group_size); }
  StatusOr<Set> MakeSet(DeviceBuffers& buffers) const;
  Operands OperandsOf(const Set& set, int rank) const;
  Status Start(const Set& set, int leave_out);
  Status StartAll(const Set& set);

  const CallSpec spec_;
  const CallShape shape_;
  const HarnessOptions options_;
  std::unique_ptr<GpuCommunicator> communicator_;
  std::unique_ptr<GroupCall> call_;
  std::vector<void*> streams_;  // by rank; the first serves kGrid
};

// Bytes read plus written per second by a device-to-device copy of `bytes`: the median of
// `samples`.
StatusOr<double> CopyBandwidth(int ordinal, uint64_t bytes, int samples);

struct DeviceInfo {
  std::string name;
  int sm_count = 0;
  int l2_bytes = 0;
  int compute_capability = 0;  // 90 is 9.0
  uint64_t memory_bytes = 0;
};
StatusOr<DeviceInfo> GetDeviceInfo(int ordinal);

}  // namespace jaxcoll::cuda
