// NICs that exist in this process only: a libibverbs for tests, between whose queue pairs requests
// are carried out in an order that a seed says, and fail when a test says so.
//
// As strict as hardware, and stricter where hardware differs: keys are of one domain, have bounds
// and rights; a queue that is too full refuses, or ends the test; a request that has been carried
// out at the peer is reported later, or, if its queue pair fails first, never; a source that is not
// inline is read when the request is carried out. Nothing is carried out but in calls of the
// library: a few requests when completions are looked for, all of them once somebody wants to
// sleep.
//
// Thread rule: the library's functions from any thread, as that of libibverbs; the rest likewise.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "transport/rdma/ports.h"
#include "transport/rdma/verbs.h"

namespace jaxcoll {

class FakeVerbs {
 public:
  // Its devices are fake0, fake1, ..., each with one RoCE port. Takes the place of the system's
  // library until it is destroyed; all links must be gone by then.
  explicit FakeVerbs(uint64_t seed, int device_count = 2);
  ~FakeVerbs();
  FakeVerbs(const FakeVerbs&) = delete;
  FakeVerbs& operator=(const FakeVerbs&) = delete;

  static FakeVerbs& Current();
  RdmaConfig Config() const;  // that finds these devices

  // --- what was done
  struct Counts {
    uint64_t requests = 0;          // to send
    uint64_t doorbells = 0;         // calls of post_send
    uint64_t inlined = 0;           // requests whose bytes came with them
    uint64_t send_completions = 0;  //
    uint64_t receive_completions = 0;
    uint64_t registrations = 0;
  };
  Counts counts();
  size_t regions();  // that are registered now
  size_t regions_with_access(int access);
  size_t regions_in(std::span<const std::byte> memory);  // that overlap it
  verbs::QpAttr last_connected();   // attributes of the queue pair that was connected last
  std::vector<uint64_t> dmabufs();  // offsets of the dma-bufs that were registered

  // --- faults
  // The device's n-th request from here on fails with this status.
  void FailRequest(int device, int n, uint32_t status);
  // Nothing comes through the port; the device says so if `told`.
  void SetPort(int device, bool up, bool told = true);
  void RaiseEvent(int device, verbs::EventType event);
  // So much memory may be registered in all from here on.
  void LimitRegistration(size_t bytes);
  void LimitInline(uint32_t bytes);
  void WithoutDmabuf();

 private:
  struct FakeDevice;
  struct FakeContext;
  struct FakeChannel;
  struct FakeCq;
  struct FakeQp;
  struct FakeMr;
  struct Posted;
  struct Functions;  // the library's

  bool Step();
  void Drain();
  void Execute(FakeQp& qp, Posted& request);
  void Break(FakeQp& qp, uint32_t status);
  void Push(FakeCq& cq, const verbs::Wc& completion, FakeQp* qp, uint64_t retired);
  FakeMr* Find(uint32_t key, const verbs::Pd* pd, uint64_t address, uint64_t bytes, int access);

  std::mutex mutex_;
  std::mt19937_64 random_;
  std::filesystem::path folder_;
  verbs::Library library_{};
  std::vector<std::unique_ptr<FakeDevice>> devices_;
  std::map<uint32_t, FakeQp*> qps_;
  std::map<uint32_t, FakeMr*> mrs_;  // by key
  uint32_t next_number_ = 100;
  int domains_ = 0;
  int armed_ = 0;  // completion queues
  size_t registration_limit_ = ~size_t{0};
  size_t registered_bytes_ = 0;
  uint32_t inline_limit_ = 256;
  Counts counts_;
  verbs::QpAttr last_connected_{};
  std::vector<uint64_t> dmabufs_;
};

}  // namespace jaxcoll
