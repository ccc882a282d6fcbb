// One reactor by hand, whose peers are played by the test.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "comm/reactor.h"
#include "engine/slices/slice_plan.h"
#include "schedule/schedule.h"
#include "support/fake_link.h"
#include "support/op_lists.h"

namespace jaxcoll {

inline constexpr double kTimeoutS = 1;

// A reactor with one device per process, whose peers are played by the test.
class Alone : public LinkSink {
 public:
  explicit Alone(int processes, double timeout_s = kTimeoutS) : net_(random_, 0) {
    std::unordered_map<int64_t, int> devices;
    for (int p = 0; p < processes; ++p) devices[p] = p;
    Reactor::Seams seams;
    seams.now = [this] { return net_.now(); };
    seams.timeout_s = timeout_s;
    seams.complete = [this](std::vector<std::unique_ptr<Completion>> completions,
                            std::shared_ptr<const Status> status,
                            std::shared_ptr<ContinuationCost>) {
      for (size_t i = 0; i < completions.size(); ++i) ended.push_back(*status);
    };
    reactor = Reactor::Create(
        0, devices, [](int) {}, seams);
  }

  // The test's end of a link.
  FakeLink& Connect(int peer) {
    auto out = std::make_shared<FakePipe>(), in = std::make_shared<FakePipe>();
    peers_[peer] = std::make_unique<FakeLink>(net_, 0, in, out, FakeNet::Copying::kAtOnce);
    reactor->AddLink(peer,
                     std::make_unique<FakeLink>(net_, peer, out, in, FakeNet::Copying::kAtOnce));
    return *peers_[peer];
  }

  // The peer closes it.
  void Cut(int peer) { peers_.erase(peer); }

  std::unique_ptr<RemoteGroup> Open(int ranks, const std::string& operation, int64_t elements = 4) {
    ScheduleSpec spec;
    spec.world_size = ranks;
    StatusOr<OpList> op_list = BuildSchedule(spec, 0);
    StatusOr<SliceOps> slice_ops = CompileSliceOps({*op_list}, ranks, 1);
    auto plan = SlicePlan::Create(std::make_shared<const SliceOps>(std::move(*slice_ops)),
                                  {elements}, DType::kFloat32, ReduceOp::kSum, kSlotBytes);
    std::vector<int64_t> devices(ranks);
    std::iota(devices.begin(), devices.end(), 0);
    CallFacts facts;
    facts.parts = {{"collectives", operation}, {"shapes", '[' + std::to_string(elements) + ']'}};
    facts.operands = "float32[" + std::to_string(elements) + ']';
    facts.program = program_name;
    facts.instruction = instruction.empty() ? operation : instruction;
    facts.serial = serial;
    return reactor->interprocess().Open({devices, operation, operation, *plan, facts, build});
  }

  void Start(RemoteGroup& group) { Start(group, input, output); }
  void Start(RemoteGroup& group, const float* from, float* to) {
    class Silent final : public Completion {
      void Done(const Status&) override {}
    };
    std::vector<std::unique_ptr<Completion>> completions;
    completions.push_back(std::make_unique<Silent>());
    group.Start(run_id,
                {{reinterpret_cast<const std::byte*>(from)}, {reinterpret_cast<std::byte*>(to)}},
                std::move(completions), std::make_shared<ContinuationCost>());
  }

  void Settle() {
    for (int i = 0; i < 20; ++i) {
      net_.Advance(std::chrono::microseconds(1));
      reactor->Step();
      for (auto& [process, link] : peers_) (void)link->Poll(*this, 1000);
    }
  }

  // Runs for so long, as a process does that wakes up now and then.
  void Wait(double s) {
    for (const auto end = net_.now() + std::chrono::duration<double>(s); net_.now() < end;) {
      net_.Advance(std::chrono::milliseconds(100));
      Settle();
    }
  }
  // Does not run for so long.
  void BeStopped(double s) {
    net_.Advance(
        std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::duration<double>(s)));
  }

  void OnNotice(int, const Notice& notice) override { notices.push_back(Decode(notice)); }
  void OnTold(int, std::string_view message) override { told.emplace_back(message); }
  void OnSent(int, uint64_t) override {}

  int64_t run_id = 0;
  // The properties of the groups that are opened.
  std::string program_name = "f", instruction;
  bool serial = false;
  uint64_t build = 0;
  float input[4] = {1, 2, 3, 4}, output[4] = {};
  std::vector<Status> ended;
  std::vector<NoticeFields> notices;
  std::vector<std::string> told;
  std::unique_ptr<Reactor> reactor;

 private:
  Random random_{1};
  FakeNet net_;
  std::map<int, std::unique_ptr<FakeLink>> peers_;
};

}  // namespace jaxcoll
