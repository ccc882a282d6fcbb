// The engine between processes by hand: one reactor whose peers the test plays, and real threads.
#include "comm/reactor.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <map>
#include <numeric>
#include <thread>

#include "engine/slices/slice_plan.h"
#include "schedule/schedule.h"
#include "support/fake_link.h"
#include "support/reactor_alone.h"

namespace jaxcoll {
namespace {

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// "poison <communicator> <cause>" as process 0 says it of the devices 0 to ranks - 1.
std::string PoisonOf(int ranks, const std::string& cause) {
  Alone other(ranks);
  other.Connect(1);
  other.Open(ranks, "x")->Fail(Status(StatusCode::kInternal, cause));
  other.Settle();
  return other.told.at(0);
}

TEST(Reactor, MessagesOfACommunicatorThatIsNotOpenYetCountWhenItIs) {
  Alone process(2);
  FakeLink& peer = process.Connect(1);
  peer.Tell(PoisonOf(2, "rank 1 of process 1 gave up\xff"));
  process.Settle();
  const auto group = process.Open(2, "late");
  process.Start(*group);
  ASSERT_EQ(process.ended.size(), 1u);  // without a deadline
  EXPECT_TRUE(Contains(process.ended[0].message(), "rank 1 of process 1 gave up?"))
      << process.ended[0].message();
}

TEST(Reactor, AProcessOutsideACommunicatorCannotPoisonIt) {
  Alone process(3);
  process.Connect(1);
  FakeLink& stranger = process.Connect(2);
  const std::string poison = PoisonOf(2, "lies");
  stranger.Tell(poison);  // before it is open
  process.Settle();
  const auto group = process.Open(2, "all_reduce");
  process.Start(*group);
  process.Settle();
  EXPECT_TRUE(process.ended.empty());
  stranger.Tell(poison);  // after
  process.Settle();
  EXPECT_TRUE(process.ended.empty());
  EXPECT_TRUE(Contains(process.reactor->Dump(), "process 2 (fake 2) is lost: it sent"))
      << process.reactor->Dump();
}

TEST(Reactor, AProcessThatOpensACommunicatorWithALostOneTellsTheOthers) {
  Alone process(3);
  process.Connect(1);
  process.reactor->LinkFailed(2, "no route to host");
  const auto group = process.Open(3, "all_reduce");
  process.Settle();
  ASSERT_EQ(process.told.size(), 1u);
  EXPECT_TRUE(Contains(process.told[0], "rank 2 is lost: process 2")) << process.told[0];
}

TEST(Reactor, AProcessThatLearnsOfAFailurePassesItOn) {
  Alone process(3);
  FakeLink& teller = process.Connect(1);
  process.Connect(2);
  const auto group = process.Open(3, "all_reduce");
  teller.Tell(PoisonOf(3, "rank 0 is late"));
  process.Settle();
  ASSERT_EQ(process.told.size(), 1u);  // to process 2, not back to 1
  EXPECT_TRUE(Contains(process.told[0], "rank 0 is late"));
}

// Opens a call of two ranks and returns the data notice that its peer should send for it.
NoticeFields DataFor(Alone& process, RemoteGroup& group) {
  process.Start(group);
  process.Settle();
  for (NoticeFields fields : process.notices) {
    if (fields.kind != NoticeKind::kData) continue;
    fields.source = 1;
    fields.destination = 0;
    return fields;
  }
  ADD_FAILURE() << "nothing was sent";
  return {};
}

TEST(Reactor, AnEarlyMessageIsCheckedLikeALateOne) {
  for (const char* what : {"good", "impostor", "long", "unknown"}) {
    Alone process(3);
    FakeLink& peer = process.Connect(1);
    FakeLink& stranger = process.Connect(2);
    const auto group = process.Open(2, "all_reduce");
    NoticeFields fields = DataFor(process, *group);
    const std::vector<std::byte> bytes(128);
    ++fields.number;  // a call that is not made yet
    if (*what == 'l') fields.bytes = 128;
    if (*what == 'u') fields.sequence = 7;
    (*what == 'i' ? stranger : peer)
        .Put({bytes.data(), fields.bytes}, fields.offset, Encode(fields), 0);
    process.Settle();
    EXPECT_EQ(process.reactor->Account().early_calls, 1u) << what;
    process.Start(*group);
    process.Settle();
    const std::string dump = process.reactor->Dump();
    EXPECT_EQ(Contains(dump, "process 1 (fake 1) is lost"), *what == 'l' || *what == 'u') << dump;
    EXPECT_EQ(Contains(dump, "process 2 (fake 2) is lost"), *what == 'i') << dump;
    EXPECT_EQ(process.ended.size(), *what == 'l' || *what == 'u' ? 2u : *what == 'g' ? 1u : 0u);
    EXPECT_EQ(process.reactor->Account().early_bytes, 0u);
  }
}

TEST(Reactor, AProcessFarAheadAsksBeforeItSends) {
  Alone process(2);
  FakeLink& peer = process.Connect(1);
  const auto group = process.Open(2, "all_reduce");
  const NoticeFields sent = DataFor(process, *group);
  const auto kinds = [&] {
    std::vector<NoticeKind> result;
    for (const NoticeFields& fields : std::exchange(process.notices, {})) {
      result.push_back(fields.kind);
    }
    return result;
  };
  const auto say = [&](NoticeFields fields) {
    peer.Put({}, 0, Encode(fields), 0);
    process.Settle();
  };
  const uint32_t much = Reactor::kAheadBytes + 1;
  NoticeFields credit = sent;
  credit.kind = NoticeKind::kCredit;
  credit.bytes = much;
  say(credit);  // it has put much aside
  kinds();
  process.Start(*group);
  process.Settle();
  ASSERT_FALSE(process.notices.empty());
  for (const NoticeFields& fields : process.notices) {
    EXPECT_EQ(fields.kind, NoticeKind::kRequest);
    EXPECT_EQ(fields.bytes, 0u);
  }
  EXPECT_EQ(process.reactor->Account().slots_taken, 0u);
  const NoticeFields request = process.notices.front();
  process.notices.clear();
  NoticeFields ready = request;
  ready.kind = NoticeKind::kReady;
  say(ready);
  EXPECT_EQ(kinds(), (std::vector{NoticeKind::kData}));
  NoticeFields taken;
  taken.kind = NoticeKind::kTaken;
  taken.bytes = much;
  say(taken);
  process.Start(*group);
  process.Settle();
  EXPECT_EQ(kinds(), (std::vector{NoticeKind::kData}));
  // Nobody is ready for what it was not asked for.
  say(ready);
  EXPECT_TRUE(Contains(process.reactor->Dump(), "process 1 (fake 1) is lost"));
}

TEST(Reactor, AProcessThatIsAskedAnswersWhenItWaits) {
  for (const bool early : {false, true}) {
    Alone process(2);
    FakeLink& peer = process.Connect(1);
    const auto group = process.Open(2, "all_reduce");
    NoticeFields request = DataFor(process, *group);
    request.kind = NoticeKind::kRequest;
    if (early) ++request.number;
    process.notices.clear();
    peer.Put({}, 0, Encode(request), 0);
    process.Settle();
    EXPECT_EQ(process.notices.size(), early ? 0u : 1u);
    EXPECT_EQ(process.reactor->Account().early_calls, early ? 1u : 0u);
    if (early) process.Start(*group);
    process.Settle();
    EXPECT_EQ(std::count_if(process.notices.begin(), process.notices.end(),
                            [](const NoticeFields& f) { return f.kind == NoticeKind::kReady; }),
              1);
    EXPECT_TRUE(process.ended.empty());
  }
}

TEST(Reactor, AJobThatWasStoppedAndResumedHasNotMissedItsDeadlines) {
  Alone process(2, 10);
  process.Connect(1);
  const auto group = process.Open(2, "all_reduce");
  process.Start(*group);
  process.Wait(0.5);
  for (int i = 0; i < 3; ++i) {
    process.BeStopped(1000);
    process.Settle();
  }
  process.BeStopped(1000);
  process.Start(*group);  // before the thread has looked at the clock
  process.Wait(4);
  EXPECT_TRUE(process.ended.empty()) << process.ended[0].message();
  process.Wait(8);
  ASSERT_EQ(process.ended.size(), 2u);
  EXPECT_TRUE(Contains(process.ended[0].message(), "has not answered"))
      << process.ended[0].message();
}

TEST(Reactor, ASilentPeerIsGivenUpSoonerThanALateOne) {
  for (const bool answers : {false, true}) {
    Alone process(2, 300);
    FakeLink& peer = process.Connect(1);
    const auto group = process.Open(2, "all_reduce");
    process.Start(*group);
    double waited_s = 0;
    while (process.ended.empty() && waited_s < 1000) {
      process.Wait(0.5);
      waited_s += 0.5;
      if (!std::exchange(process.told, {}).empty() && answers) {
        peer.Tell("state waits in all_gather (call 0, since 1 s)");
      }
    }
    ASSERT_EQ(process.ended.size(), 1u);
    const std::string& text = process.ended[0].message();
    if (answers) {
      EXPECT_NEAR(waited_s, 300, 2);
      EXPECT_TRUE(Contains(text, "(process 1) waits in all_gather")) << text;
      EXPECT_TRUE(Contains(text, "same order")) << text;
    } else {
      EXPECT_NEAR(waited_s, 60, 2);  // JAX gives up on a lost process after 100 s
      EXPECT_TRUE(Contains(text, "(process 1) has not answered for 60 s: it is stopped")) << text;
    }
  }
}

// Its messages come, but all of them together take longer than the deadline.
TEST(Reactor, ASlowCallIsWaitedForWhileItsMessagesCome) {
  constexpr double kDeadlineS = 100;
  for (const bool stops : {false, true}) {
    Alone process(2, kDeadlineS);
    FakeLink& peer = process.Connect(1);
    const auto group = process.Open(2, "all_reduce", 4 * kSlotBytes / sizeof(float));
    std::vector<float> input(4 * kSlotBytes / sizeof(float)), output(input.size());
    process.Start(*group, input.data(), output.data());
    std::vector<NoticeFields> asked;
    const auto answer = [&](double for_s) {
      for (double waited_s = 0; waited_s < for_s; waited_s += 0.5) {
        process.Wait(0.5);
        if (!std::exchange(process.told, {}).empty()) peer.Tell("state waits in x (call 0)");
        for (const NoticeFields& fields : std::exchange(process.notices, {})) {
          if (fields.kind == NoticeKind::kReady) asked.push_back(fields);
        }
      }
    };
    const std::vector<std::byte> bytes(kSlotBytes);
    size_t sent = 0;
    answer(1);
    ASSERT_GE(asked.size(), 2u);
    for (; sent < (stops ? 1 : asked.size()); ++sent) {
      NoticeFields data = asked[sent];
      data.kind = NoticeKind::kData;
      data.offset = static_cast<uint32_t>(sent % 2 * kSlotBytes);
      data.bytes = kSlotBytes;
      answer(0.9 * kDeadlineS);
      ASSERT_TRUE(process.ended.empty()) << process.ended[0].message();
      peer.Put(bytes, data.offset, Encode(data), 0);
    }
    answer(0.9 * kDeadlineS);
    ASSERT_TRUE(process.ended.empty()) << process.ended[0].message();
    answer(0.2 * kDeadlineS);
    ASSERT_EQ(process.ended.size(), 1u);
    const std::string& text = process.ended[0].message();
    EXPECT_TRUE(Contains(text, "; its last message was 100 s ago; missing: rank 1")) << text;
  }
}

TEST(Reactor, ACommunicatorIsForgottenWithItsLastGroup) {
  Alone process(100);
  for (int i = 0; i < 3; ++i) {
    for (int ranks = 2; ranks < 100; ++ranks) {
      const auto first = process.Open(ranks, "all_reduce"), second = process.Open(ranks, "x");
      EXPECT_EQ(process.reactor->Account().communicators, 1u);
    }
  }
  EXPECT_EQ(process.reactor->Account().communicators, 0u);
  // But not that it has failed.
  process.Open(2, "all_reduce")->Fail(Status(StatusCode::kInternal, "rank 0 gave up"));
  EXPECT_EQ(process.reactor->Account().communicators, 1u);
  process.Start(*process.Open(2, "all_reduce"));
  ASSERT_EQ(process.ended.size(), 1u);
  EXPECT_TRUE(Contains(process.ended[0].message(), "rank 0 gave up"));
}

TEST(Reactor, APeerThatRunsAwayIsStopped) {
  Alone process(2);
  FakeLink& peer = process.Connect(1);
  const auto group = process.Open(2, "all_reduce");
  NoticeFields fields = DataFor(process, *group);
  fields.bytes = kEagerBytes;
  const std::vector<std::byte> bytes(kEagerBytes);
  size_t most = 0;
  for (int i = 0; i < 8192; ++i) {
    ++fields.number;
    peer.Put(bytes, fields.offset, Encode(fields), 0);
    if (i % 64 == 0) process.Settle();
    most = std::max(most, process.reactor->Account().early_bytes);
  }
  EXPECT_LE(most, size_t{65} << 20);
  EXPECT_TRUE(Contains(process.reactor->Dump(), "so many calls ahead")) << process.reactor->Dump();
  EXPECT_EQ(process.reactor->Account().early_bytes, 0u);
}

TEST(Reactor, QuestionsAreNotAnsweredAsFastAsTheyCome) {
  Alone process(2);
  FakeLink& peer = process.Connect(1);
  for (int i = 0; i < 1000; ++i) peer.Tell("ask");
  process.Settle();
  EXPECT_EQ(process.told.size(), 1u);
}

TEST(Reactor, NumbersCountTheInstructionsOfOneExecutable) {
  Alone process(2);
  Reactor& reactor = *process.reactor;
  const auto first = reactor.interprocess().TakeNumber("f psum");
  EXPECT_EQ(first.value, 0);
  const auto dropped = reactor.interprocess().TakeNumber("f psum");
  EXPECT_EQ(dropped.value, 1);
  reactor.interprocess().ReturnNumber("f psum", dropped);
  EXPECT_EQ(reactor.interprocess().TakeNumber("f psum").value, 1);  // instantiated again
  EXPECT_EQ(reactor.interprocess().TakeNumber("f pmax").value, 0);
  // Another thread builds another one meanwhile.
  std::thread([&] { EXPECT_EQ(reactor.interprocess().TakeNumber("f psum").value, 0); }).join();
  // Compiled once more, whether the old executable still lives or not.
  reactor.EndBuild();
  EXPECT_EQ(reactor.interprocess().TakeNumber("f psum").value, 0);
  reactor.interprocess().ReturnNumber("f psum", first);
  EXPECT_EQ(reactor.interprocess().TakeNumber("f psum").value, 1);
}

TEST(Reactor, AnExecutableThatRunsIsComplete) {
  Alone process(2);
  const auto number = process.reactor->interprocess().TakeNumber("f psum");
  process.build = number.build;
  const auto group = process.Open(2, "f psum");
  EXPECT_EQ(process.reactor->interprocess().TakeNumber("f psum").value, 0);
}

TEST(Reactor, ARefusalReachesPeersWithoutAnOpenCommunicator) {
  Alone refusing(2), process(2);
  refusing.Connect(1);
  refusing.reactor->Refuse("its table is another one");
  refusing.Settle();
  ASSERT_FALSE(refusing.told.empty());
  process.Connect(1).Tell(refusing.told.back());
  process.Settle();
  process.Cut(1);
  process.Settle();
  process.Start(*process.Open(2, "all_reduce"));
  ASSERT_EQ(process.ended.size(), 1u);
  EXPECT_TRUE(Contains(process.ended[0].message(), "its table is another one"))
      << process.ended[0].message();
}

TEST(Reactor, TwoLaunchesOfOneProgramAtOnceAreRefused) {
  Alone process(2);
  process.Connect(1);
  const auto group = process.Open(2, "all_reduce");
  process.Start(*group);
  process.Start(*group);  // a loop of one launch
  EXPECT_TRUE(process.ended.empty());
  process.run_id = 1;
  process.Start(*group);
  ASSERT_EQ(process.ended.size(), 3u);
  for (const Status& status : process.ended) {
    EXPECT_TRUE(Contains(status.message(), "two threads of process 0 have launched equal programs"))
        << status.message();
  }
  process.Settle();
  EXPECT_TRUE(Contains(process.told.back(), "two threads of process 0")) << process.told.back();
}

TEST(Reactor, ARecompiledInstructionGoesOnCounting) {
  Alone process(2);
  process.Connect(1);
  auto first = process.Open(2, "all_reduce");
  const NoticeFields a = DataFor(process, *first);
  first.reset();
  first = process.Open(2, "all_reduce");
  process.notices.clear();
  const NoticeFields again = DataFor(process, *first);
  EXPECT_EQ(again.key, a.key);
  EXPECT_EQ(again.number, a.number + 1);
}

TEST(Notice, CarriesEveryField) {
  const MessageId id{123456, {70000, 80000, 90000, 100000}};
  const NoticeFields fields = Decode(Encode(About(NoticeKind::kData, {~uint64_t{5}, 7}, id)));
  EXPECT_EQ(fields.message(), id);
  EXPECT_EQ(fields.call(), (CallId{~uint64_t{5}, 7}));
}

// ---- With threads ------------------------------------------------------------------------------

// Real links, real reactor threads, completions on the worker pool, two threads that make calls.
class ReactorThreads : public testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(HandlersLendTheirs, ReactorThreads, testing::Bool());

TEST_P(ReactorThreads, OverSharedMemory) {
  constexpr int kProcesses = 3, kGroups = 2, kCalls = 40;
  std::unordered_map<int64_t, int> devices;
  for (int p = 0; p < kProcesses; ++p) devices[p] = p;
  std::vector<std::unique_ptr<Reactor>> reactors;
  for (int p = 0; p < kProcesses; ++p) {
    Reactor::Seams seams;
    seams.thread = true;
    seams.lend = GetParam();
    seams.timeout_s = 60;
    reactors.push_back(Reactor::Create(
        p, devices, [](int) {}, seams));
  }
  for (int a = 0; a < kProcesses; ++a) {
    for (int b = a + 1; b < kProcesses; ++b) {
      int sockets[2];
      ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
      const StatusOr<int> of_a = MakeShmSegment(kWindowBytes), of_b = MakeShmSegment(kWindowBytes);
      ASSERT_TRUE(of_a.ok() && of_b.ok());
      auto link_a = MakeShmLink(b, sockets[0], dup(*of_a), dup(*of_b), reactors[a]->bell(),
                                dup(reactors[b]->bell()), "shm");
      auto link_b = MakeShmLink(a, sockets[1], *of_b, *of_a, reactors[b]->bell(),
                                dup(reactors[a]->bell()), "shm");
      ASSERT_TRUE(link_a.ok() && link_b.ok());
      reactors[a]->AddLink(b, std::move(*link_a));
      reactors[b]->AddLink(a, std::move(*link_b));
    }
  }
  class Count final : public Completion {
   public:
    Count(std::atomic<int>& done, std::atomic<int>& failed) : done_(done), failed_(failed) {}
    void Done(const Status& status) override {
      if (!status.ok()) ++failed_;
      ++done_;
    }

   private:
    std::atomic<int>&done_, &failed_;
  };
  std::atomic<int> done{0}, failed{0};
  std::vector<std::unique_ptr<RemoteGroup>> groups;
  std::vector<std::thread> threads;
  struct Buffers {
    std::vector<float> in, out;
  };
  std::deque<Buffers> buffers;
  for (int p = 0; p < kProcesses; ++p) {
    for (int g = 0; g < kGroups; ++g) {
      ScheduleSpec spec;
      spec.algorithm = g == 0 ? "ring" : "direct";
      spec.world_size = kProcesses;
      auto slice_ops = CompileSliceOps({*BuildSchedule(spec, p)}, kProcesses, kProcesses);
      const int64_t elements = g == 0 ? 100000 : 100;
      auto plan = SlicePlan::Create(std::make_shared<const SliceOps>(std::move(*slice_ops)),
                                    {elements}, DType::kFloat32, ReduceOp::kSum, kSlotBytes);
      groups.push_back(
          reactors[p]->interprocess().Open({{0, 1, 2}, spec.algorithm, spec.algorithm, *plan}));
      std::vector<Buffers*> mine;
      for (int c = 0; c < kCalls; ++c) {
        buffers.push_back({std::vector<float>(elements, static_cast<float>(p + c)),
                           std::vector<float>(elements)});
        mine.push_back(&buffers.back());
      }
      threads.emplace_back([&done, &failed, mine, group = groups.back().get()] {
        for (Buffers* b : mine) {
          std::vector<std::unique_ptr<Completion>> completions;
          completions.push_back(std::make_unique<Count>(done, failed));
          group->Start(0,
                       {{reinterpret_cast<const std::byte*>(b->in.data())},
                        {reinterpret_cast<std::byte*>(b->out.data())}},
                       std::move(completions), std::make_shared<ContinuationCost>());
        }
      });
    }
  }
  for (std::thread& thread : threads) thread.join();
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (done < kProcesses * kGroups * kCalls && std::chrono::steady_clock::now() < end) {
    std::this_thread::yield();
  }
  EXPECT_EQ(done, kProcesses * kGroups * kCalls);
  EXPECT_EQ(failed, 0);
  size_t index = 0;
  for (const Buffers& b : buffers) {
    const auto c = static_cast<float>(index++ % kCalls);
    EXPECT_EQ(b.out, std::vector<float>(b.out.size(), 3 * c + 3));
  }
  for (auto& reactor : reactors) reactor->Stop();
  // A call that comes after the end is failed, not lost.
  std::vector<std::unique_ptr<Completion>> completions;
  completions.push_back(std::make_unique<Count>(done, failed));
  Buffers& b = buffers.front();
  groups[0]->Start(0,
                   {{reinterpret_cast<const std::byte*>(b.in.data())},
                    {reinterpret_cast<std::byte*>(b.out.data())}},
                   std::move(completions), std::make_shared<ContinuationCost>());
  // `done` is counted last: after that no worker touches these counters.
  while (done <= kProcesses * kGroups * kCalls && std::chrono::steady_clock::now() < end) {
    std::this_thread::yield();
  }
  EXPECT_EQ(failed, 1);
  groups.clear();
}

}  // namespace
}  // namespace jaxcoll
