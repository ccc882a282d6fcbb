// Features that only rdma has: rails, keys, registration. The rest is link_test.cc's.

#include "transport/rdma/rdma.h"

#include <dirent.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <random>
#include <thread>

#include "support/link_pair.h"
#include "support/link_talker.h"
#include "support/record_writer.h"
#include "transport/rdma/offer.h"
#include "transport/rdma/verbs.h"
#include "transport/tcp/frame.h"

namespace jaxcoll {
namespace {

constexpr size_t kWindowBytes = size_t{1} << 20;
// Registering memory takes emulated processors long.
constexpr size_t kSmallWindowBytes = size_t{1} << 16;

class RdmaTest : public testing::TestWithParam<LinkKind> {
 protected:
  RdmaTest() : trace_(__FILE__, __LINE__, "seed " + std::to_string(seed)), random(seed) {}
  void SetUp() override {
    if (GetParam() == LinkKind::kFakeRdma) {
      fake_.emplace(seed);
    } else if (!WhyNoTestRdma().empty()) {
      GTEST_SKIP() << WhyNoTestRdma();
    }
  }
  static RdmaLink& Rdma(LinkEnd& end) { return static_cast<RdmaLink&>(*end.link); }
  static bool HasTwoRails(LinkPair& pair) { return Rdma(pair.a).live_rails() >= 2; }

  const uint64_t seed = std::random_device()();
  bool broken_[2] = {};

 private:
  testing::ScopedTrace trace_;
  std::optional<FakeVerbs> fake_;

 protected:
  std::mt19937_64 random;
};

// Cases that need a kernel: processes, and their limits.
class RealRdmaTest : public RdmaTest {};

#define NEEDS_TWO_RAILS(pair) \
  if (!HasTwoRails(pair)) GTEST_SKIP() << "this machine has one RDMA port"

TEST_P(RdmaTest, AllActivePortsAreRailsOfALinkAndItNamesThem) {
  LinkPair pair(GetParam(), kWindowBytes);
  const RdmaPorts ports = FindRdmaPorts(TestRdmaConfig(GetParam()), -1);
  EXPECT_EQ(Rdma(pair.a).live_rails(), ports.usable.size());
  EXPECT_EQ(Rdma(pair.b).live_rails(), ports.usable.size());
  for (const RdmaPort& port : ports.usable) {
    EXPECT_NE(pair.a.link->Describe().find(port.Name() + " (" + GidText(port.gid) + ") to "),
              std::string::npos)
        << pair.a.link->Describe();
  }
}

TEST_P(RdmaTest, BytesInTheStagingMemoryAreSentFromThere) {
  LinkPair pair(GetParam(), kWindowBytes);
  std::byte* const staging = pair.a.link->staging();
  std::fill(staging + 5000, staging + 305'000, std::byte{0x5C});
  pair.a.link->Put({staging + 5000, 300'000}, 5000, Notice{1}, 0);
  ASSERT_TRUE(pair.PollUntil([&] { return pair.b.notices.size() == 1; }));
  const std::span<std::byte> window = pair.b.link->window();
  EXPECT_EQ(window[4999], std::byte{0});
  EXPECT_EQ(std::count(window.begin() + 5000, window.begin() + 305'000, std::byte{0x5C}), 300'000);
  EXPECT_EQ(window[305'000], std::byte{0});
}

// Either side, or both, at any time; puts in flight arrive once.
TEST_P(RdmaTest, TheTrafficOfARailThatFailsMovesToTheOther) {
  for (int round = 0; round < 3; ++round) {
    LinkPair pair(GetParam(), kWindowBytes);
    NEEDS_TWO_RAILS(pair);
    constexpr uint64_t kCount = 1500;
    Talker talker_a(pair.a, kWindowBytes, kCount, false, random());
    Talker talker_b(pair.b, kWindowBytes, kCount, false, random());
    const size_t rail = random() % 2;
    const auto break_at = [&](Talker& talker, LinkEnd& end) {
      const uint64_t at = random() % kCount;
      bool* const broken = &(broken_[&talker == &talker_b] = false);
      talker.on_turn = [&end, at, rail, broken](uint64_t received) {
        if (*broken || received < at) return;
        *broken = true;
        Rdma(end).BreakRail(rail);
      };
    };
    if (round != 1) break_at(talker_a, pair.a);
    if (round != 0) break_at(talker_b, pair.b);
    std::string error_b;
    std::thread thread([&] { error_b = talker_b.Run(); });
    EXPECT_EQ(talker_a.Run(), "");
    thread.join();
    EXPECT_EQ(error_b, "");
    EXPECT_EQ(Rdma(pair.a).live_rails(), 1u);
    EXPECT_EQ(Rdma(pair.b).live_rails(), 1u);
  }
}

TEST_P(RdmaTest, TheLastRailsFailureEndsBothSidesWithItsReason) {
  LinkPair pair(GetParam(), kSmallWindowBytes);
  pair.a.link->Put({}, 0, Notice{1}, 0);
  ASSERT_TRUE(pair.PollUntil([&] { return !pair.b.notices.empty(); }));
  for (size_t i = Rdma(pair.a).live_rails(); i-- > 0;) Rdma(pair.a).BreakRail(i);
  ASSERT_TRUE(pair.PollUntil([&] { return !pair.a.end.ok() && !pair.b.end.ok(); }));
  for (LinkEnd* end : {&pair.a, &pair.b}) {
    EXPECT_EQ(end->end.code(), StatusCode::kUnavailable);
    EXPECT_NE(end->end.message().find("the last RDMA rail failed, "), std::string::npos)
        << end->end.message();
    EXPECT_NE(end->end.message().find("a test broke it"), std::string::npos) << end->end.message();
    EXPECT_TRUE(end->link->writable_fds().empty());
    EXPECT_FALSE(end->link->PrepareToSleep());
    EXPECT_TRUE(end->link->Put({}, 0, Notice{}, 0));
  }
}

TEST_P(RdmaTest, AWrongKeyIsRefusedByThePeersNicAndSaid) {
  auto parts = MakePairParts(GetParam(), kWindowBytes);
  auto offer = *RdmaOffer::Decode(parts.first.peer_offer, RdmaLink::kMaxRails);
  for (RailAddress& rail : offer.rails) rail.rkey ^= 0x5500;
  parts.first.peer_offer = offer.Encode();
  LinkPair pair(GetParam(), std::move(parts), kWindowBytes);
  std::vector<std::byte> source(50'000, std::byte{0xEE});
  for (uint64_t i = 0; i < 8; ++i) pair.a.link->Put(source, 0, Notice{i}, 0);
  ASSERT_TRUE(pair.PollUntil([&] { return !pair.a.end.ok() && !pair.b.end.ok(); }));
  EXPECT_TRUE(pair.b.notices.empty());
  const std::span<std::byte> window = pair.b.link->window();
  EXPECT_EQ(std::count(window.begin(), window.end(), std::byte{0xEE}), 0);
  EXPECT_NE((pair.a.end.message() + pair.b.end.message()).find("access"), std::string::npos)
      << pair.a.end.message() << '\n'
      << pair.b.end.message();
}

TEST_P(RdmaTest, AnOfferThatDisagreesIsRefused) {
  for (int change = 0; change < 3; ++change) {
    auto parts = MakePairParts(GetParam(), kSmallWindowBytes);
    auto offer = *RdmaOffer::Decode(parts.first.peer_offer, RdmaLink::kMaxRails);
    if (change == 0) offer.window_bytes += 1;
    if (change == 1) offer.rails.pop_back();
    if (change == 2) {
      for (RailAddress& rail : offer.rails) rail.qp_num = 0;
    }
    const Status status =
        parts.first.rdma->Join(7, parts.first.sockets[0].release(), offer.Encode(), {}, "test");
    EXPECT_FALSE(status.ok());
    EXPECT_NE(status.message().find("peer process 7 (test)"), std::string::npos);
  }
}

// --- a peer that is broken or means harm ---------------------------------------------------------

void ExpectBroken(const LinkEnd& end, const std::string& how) {
  EXPECT_EQ(end.end.code(), StatusCode::kInternal);
  EXPECT_NE(end.end.message().find("broke the protocol"), std::string::npos) << end.end.message();
  EXPECT_NE(end.end.message().find(how), std::string::npos) << end.end.message();
}

// The ring is the peer's to write: here the notice that has come is changed before it is read.
TEST_P(RdmaTest, NonsenseInTheRingEndsTheLink) {
  const struct {
    void (*change)(RailEntry&);
    const char* error;
  } cases[] = {
      {[](RailEntry& entry) { entry.parts = 0; }, "a put of 0 parts"},
      {[](RailEntry& entry) { entry.parts = 4'000'000'000; }, "a put of 4000000000 parts"},
      {[](RailEntry& entry) { entry.consumed = 1; }, "consumed notices that were not sent"},
      {[](RailEntry& entry) { entry.consumed = ~0u; }, "consumed notices that were not sent"},
  };
  for (const auto& c : cases) {
    auto parts = MakePairParts(GetParam(), kSmallWindowBytes);
    // Addresses of this process, in an offer that its other half was to get.
    const auto offer = *RdmaOffer::Decode(parts.second.peer_offer, RdmaLink::kMaxRails);
    LinkPair pair(GetParam(), std::move(parts), kSmallWindowBytes);
    while (pair.a.Poll() | pair.b.Poll()) {
    }
    pair.b.link->Put({}, 0, Notice{1}, 0);
    while (!pair.b.link->writable_fds().empty()) pair.b.Poll();
    for (size_t i = 0; i < offer.rails.size(); ++i) {
      c.change(*reinterpret_cast<RailEntry*>(offer.rings + i * RdmaRail::kRingBytes));
    }
    while (pair.a.end.ok()) pair.a.Poll();
    ExpectBroken(pair.a, c.error);
    EXPECT_TRUE(pair.a.notices.empty());
  }
}

TEST_P(RdmaTest, NonsenseOnTheSocketEndsTheLink) {
  const struct {
    Notice notice;
    const char* error;
  } cases[] = {
      {{0}, "it sent an unknown message about a rail"},
      {{99}, "it sent an unknown message about a rail"},
      {{3, 99, 0}, "it sent an unknown message about a rail"},
      {{2, ~uint64_t{0}}, "it sent an unknown message about a rail"},
      {{3, 0, 1}, "it counts 1 notices of a rail that has sent 0"},
      {{3, 0, ~uint64_t{0}}, "notices of a rail that has sent 0"},
  };
  for (const auto& c : cases) {
    auto parts = MakePairParts(GetParam(), kSmallWindowBytes);
    const Fd raw = std::move(parts.second.sockets[0]);
    LinkEnd end(GetParam(), std::move(parts.first), kSmallWindowBytes, 7);
    RecordWriter writer(GetParam(), /*client=*/false);
    std::string frames = writer.Frame(FrameRules{0, 0, 1}.Hello());
    frames += writer.Frame({kFrameMagic, FrameKind::kPut, 0, 0, c.notice});
    ASSERT_EQ(send(raw.get(), frames.data(), frames.size(), 0), ssize_t(frames.size()));
    while (end.end.ok()) end.Poll();
    ExpectBroken(end, c.error);
  }
}

TEST_P(RealRdmaTest, APeerKilledMidTransferIsGone) {
  auto parts = MakeParts(GetParam(), kWindowBytes);
  const pid_t child = ForkPeer(GetParam(), parts, kWindowBytes, [](LinkEnd& end) {
    std::vector<std::byte> source(200'000, std::byte{1});
    while (true) {
      if (end.link->writable_fds().empty()) end.link->Put(source, 0, Notice{1}, 0);
      end.Poll();
    }
  });
  LinkEnd end(GetParam(), std::move(parts.first), kWindowBytes, 7);
  std::vector<std::byte> source(200'000, std::byte{2});
  while (end.notices.size() < 20) {
    ASSERT_TRUE(end.end.ok()) << end.end.message();
    if (end.link->writable_fds().empty()) end.link->Put(source, 0, Notice{2}, 0);
    end.Poll();
  }
  kill(child, SIGKILL);
  EXPECT_EQ(waitpid(child, nullptr, 0), child);
  while (end.end.ok()) {
    end.link->Put(source, 0, Notice{2}, 0);
    end.Poll();
  }
  EXPECT_EQ(end.end.code(), StatusCode::kUnavailable);
  EXPECT_NE(end.end.message().find(") is gone"), std::string::npos) << end.end.message();
}

TEST_P(RealRdmaTest, MemoryThatMayNotBeLockedIsAReasonThatSaysWhatToDo) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root, to become somebody with a limit";
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    std::string why = "no port";
    const RdmaPorts ports = FindRdmaPorts(TestRdmaConfig(GetParam()), -1);
    std::vector<std::shared_ptr<verbs::OpenDevice>> open;  // while this process still may
    for (const RdmaPort& port : ports.usable) open.push_back(*verbs::OpenDevice::Open(port.device));
    const rlimit limit{64 << 10, 64 << 10};
    if (setrlimit(RLIMIT_MEMLOCK, &limit) == 0 && setuid(65534) == 0) {
      why = WhyNoRdma(TestRdmaConfig(GetParam()), kWindowBytes);
    }
    (void)!write(fds[1], why.data(), why.size());
    _exit(0);
  }
  close(fds[1]);
  std::string why(2000, '\0');
  const ssize_t size = read(fds[0], why.data(), why.size());
  close(fds[0]);
  EXPECT_EQ(waitpid(child, nullptr, 0), child);
  why.resize(std::max<ssize_t>(size, 0));
  EXPECT_NE(why.find("a process may lock 64 KiB of memory here (`ulimit -l`)"), std::string::npos)
      << why;
}

// Soft-RoCE alone: nobody's real network is taken down.
std::string NetworkInterface(const std::string& device) {
  if (device.substr(0, 3) != "rxe") return "";
  std::ifstream file("/sys/class/infiniband/" + device + "/ports/1/gid_attrs/ndevs/0");
  std::string name;
  std::getline(file, name);
  return name;
}

TEST_P(RealRdmaTest, APortThatGoesDownMovesItsTraffic) {
  const RdmaPorts ports = FindRdmaPorts(TestRdmaConfig(GetParam()), -1);
  const std::string interface = NetworkInterface(ports.usable.at(0).device);
  if (geteuid() != 0 || interface.empty()) GTEST_SKIP() << "needs root and a soft-RoCE device";
  LinkPair pair(GetParam(), kWindowBytes);
  NEEDS_TWO_RAILS(pair);
  const auto set = [&](const char* state) {
    ASSERT_EQ(std::system(("ip link set " + interface + " " + state).c_str()), 0);
  };
  constexpr uint64_t kCount = 1500;
  Talker talker_a(pair.a, kWindowBytes, kCount, false, random());
  Talker talker_b(pair.b, kWindowBytes, kCount, false, random());
  bool down = false;
  talker_a.on_turn = [&](uint64_t received) {
    if (down || received < kCount / 2) return;
    down = true;
    set("down");
  };
  std::string error_b;
  std::thread thread([&] { error_b = talker_b.Run(); });
  EXPECT_EQ(talker_a.Run(), "");
  thread.join();
  set("up");
  EXPECT_EQ(error_b, "");
  EXPECT_EQ(Rdma(pair.a).live_rails(), 1u);
}

std::string NameOfCase(const testing::TestParamInfo<LinkKind>& info) { return NameOf(info.param); }

INSTANTIATE_TEST_SUITE_P(Devices, RdmaTest, testing::Values(LinkKind::kRdma, LinkKind::kFakeRdma),
                         NameOfCase);
INSTANTIATE_TEST_SUITE_P(Devices, RealRdmaTest, testing::Values(LinkKind::kRdma), NameOfCase);

}  // namespace
}  // namespace jaxcoll
