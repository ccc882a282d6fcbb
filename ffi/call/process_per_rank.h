// A job in which every device is a process of its own, of which this one is the only one that
// exists: call sites are set up as in a job, and no call is made. So tests and benchmarks measure
// what setting up costs at thousands of processes on one machine.
#pragma once

#include <memory>
#include <string>

#include "call/interprocess.h"

namespace jaxcoll {

// Thread rule: immutable.
class ProcessPerRank final : public Interprocess {
 public:
  // Device = process, 0 to `world_size` - 1.
  ProcessPerRank(int world_size, int process) : world_size_(world_size), process_(process) {}

  int process() const override { return process_; }
  std::optional<int> ProcessOfDevice(int64_t device_id) const override {
    if (device_id < 0 || device_id >= world_size_) return std::nullopt;
    return static_cast<int>(device_id);
  }
  InstructionNumber TakeNumber(const std::string&) override { return {}; }
  void ReturnNumber(const std::string&, const InstructionNumber&) override {}
  std::unique_ptr<RemoteGroup> Open(GroupSpec spec) override {
    return std::make_unique<AbsentGroup>(std::move(spec));
  }
  void FailBegunBefore(std::chrono::steady_clock::time_point, bool, const std::string&) override {}
  void Invite(Guest*) override {}

 private:
  // Holds what a group of a job would.
  class AbsentGroup final : public RemoteGroup {
   public:
    explicit AbsentGroup(GroupSpec spec) : spec_(std::move(spec)) {}
    void Start(int64_t, MemberBuffers, std::vector<std::unique_ptr<Completion>> completions,
               std::shared_ptr<ContinuationCost>) override {
      for (const std::unique_ptr<Completion>& completion : completions) {
        completion->Done(Status(StatusCode::kUnavailable, "the other processes do not exist"));
      }
    }
    void Fail(const Status&) override {}

   private:
    const GroupSpec spec_;
  };

  const int world_size_;
  const int process_;
};

}  // namespace jaxcoll
