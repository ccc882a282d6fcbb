// Devices made of memory and threads of the host, behind the seam that CUDA stands behind in
// production: what sets calls up and starts them runs as it does on GPUs, but for the kernels,
// of which only the interpreter exists.
#pragma once

#include <sys/mman.h>

#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "gpu/abi/runtime.h"
#include "support/device_world.h"

namespace jaxcoll::cuda {

class HostRuntime final : public Runtime {
 public:
  int multiprocessors = 3;
  uint64_t deadline_ns = StuckClock::kDeadlineNs;
  std::pair<int, int> apart = {-1, -1};  // devices that do not reach each other
  uint64_t device_bytes = 1ull << 40;    // that can be allocated in all
  bool imports = true;                   // whether memory of other processes can be mapped
  std::string why_no_dmabuf = "the test has no dma-bufs";
  int exports = 1 << 30;  // so many dma-bufs can be made

  StatusOr<int> MultiprocessorCount(int) override { return multiprocessors; }
  StatusOr<bool> CanReach(int from, int to) override {
    return apart != std::pair(from, to) && apart != std::pair(to, from);
  }
  Status EnableReach(int, int) override { return Status(); }

  StatusOr<unsigned char*> Allocate(int, uint64_t bytes) override {
    if (bytes > device_bytes) return Status(StatusCode::kInternal, "out of memory");
    return New(bytes);
  }
  void Free(int, unsigned char* memory) override { Delete(memory); }
  // Another allocation at the address of one that was freed.
  void Renew(unsigned char* address, uint64_t bytes) {
    std::lock_guard lock(mutex_);
    renewed_[address] = {address, bytes, ++last_id_};
  }
  StatusOr<unsigned char*> AllocateHost(int, uint64_t bytes) override { return New(bytes); }
  void FreeHost(unsigned char* memory) override { Delete(memory); }
  Status Clear(int, unsigned char* memory, uint64_t bytes) override {
    std::memset(memory, 0, bytes);
    return Status();
  }
  Status Upload(int, unsigned char* to, const void* from, uint64_t bytes) override {
    std::memcpy(to, from, bytes);
    return Status();
  }

  StatusOr<IpcHandle> Export(int, unsigned char* memory) override {
    IpcHandle handle = {};
    std::memcpy(handle.data(), &memory, sizeof(memory));
    return handle;
  }
  StatusOr<unsigned char*> Import(int, const IpcHandle& handle) override {
    if (!imports) return Status(StatusCode::kInternal, "invalid resource handle");
    unsigned char* memory = nullptr;
    std::memcpy(&memory, handle.data(), sizeof(memory));
    return memory;
  }
  void CloseImport(int, unsigned char*) override {}

  StatusOr<Allocation> AllocationOf(int, const void* address) override {
    const auto* const at = static_cast<const unsigned char*>(address);
    std::lock_guard lock(mutex_);
    for (const auto& [data, memory] : memory_) {
      if (at >= data && at < data + memory->bytes())
        return Allocation{data, memory->bytes(), ids_[data]};
    }
    for (const auto& [data, allocation] : renewed_) {
      if (at >= data && at < data + allocation.bytes) return allocation;
    }
    return Status(StatusCode::kInternal, "not allocated here");
  }

  std::string WhyNoDmabuf(int) override { return why_no_dmabuf; }
  StatusOr<int> ExportDmabuf(int, unsigned char* memory, uint64_t bytes) override {
    EXPECT_EQ((reinterpret_cast<uintptr_t>(memory) | bytes) % DeviceMemory::kPageBytes, 0u);
    std::lock_guard lock(mutex_);
    if (exports-- <= 0) return Status(StatusCode::kInternal, "the test exports no more");
    return memfd_create("device", MFD_CLOEXEC);
  }

  Status Preload(int, const Kernel& kernel) override {
    std::lock_guard lock(mutex_);
    preloaded_.push_back(kernel);
    return Status();
  }
  // Puts the launch on a stream, which is any address.
  Status Start(int, void* stream, const Launch& launch) override {
    std::lock_guard lock(mutex_);
    if (const auto* call = std::get_if<RaggedTableCall>(&launch.parameters)) {
      EXPECT_EQ(launch.kernel.family, Kernel::kRaggedExchange);
      streams_[stream].emplace_back(*call);
      std::get<RaggedTableCall>(streams_[stream].back()).table_call.deadline_ns = deadline_ns;
    } else if (const auto* call = std::get_if<TableCall>(&launch.parameters)) {
      EXPECT_EQ(launch.kernel.family, Kernel::kInterpreter);
      EXPECT_EQ(static_cast<int>(launch.kernel.dtype), call->dtype);
      streams_[stream].emplace_back(*call);
      std::get<TableCall>(streams_[stream].back()).deadline_ns = deadline_ns;
    } else {
      return InvalidArgument("here is no kernel of those that reach each other's memory");
    }
    EXPECT_EQ(launch.blocks, BlocksOf(streams_[stream].back()));
    EXPECT_LE(launch.blocks, multiprocessors);
    return Status();
  }

  // Runs all streams, `replays` times what is on them, as a graph is replayed; whether all did.
  bool Run(int replays = 1, const StreamOptions& options = {}) {
    std::vector<std::vector<DeviceCall>> streams;
    for (auto& [stream, calls] : streams_) {
      streams.emplace_back();
      for (int i = 0; i < replays; ++i) {
        streams.back().insert(streams.back().end(), calls.begin(), calls.end());
      }
    }
    streams_.clear();
    bool all = true;
    for (const bool ok : RunStreams(streams, options)) all = all && ok;
    return all;
  }

 private:
  unsigned char* New(uint64_t bytes) {
    auto memory = std::make_unique<DeviceMemory>(bytes);
    unsigned char* const data = memory->data();
    std::lock_guard lock(mutex_);
    memory_[data] = std::move(memory);
    ids_[data] = ++last_id_;
    return data;
  }
  void Delete(unsigned char* memory) {
    std::lock_guard lock(mutex_);
    memory_.erase(memory);
  }

  std::mutex mutex_;
  std::map<unsigned char*, std::unique_ptr<DeviceMemory>> memory_;  // guarded by mutex_
  std::map<unsigned char*, uint64_t> ids_;                          // guarded by mutex_
  std::map<unsigned char*, Allocation> renewed_;                    // guarded by mutex_
  uint64_t last_id_ = 0;                                            // guarded by mutex_
  std::map<void*, std::vector<DeviceCall>> streams_;                // guarded by mutex_
  std::vector<Kernel> preloaded_;                                   // guarded by mutex_
};

}  // namespace jaxcoll::cuda
