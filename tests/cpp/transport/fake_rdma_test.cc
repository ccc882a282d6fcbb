// rdma over NICs that do what the test says: what a message costs, buffers that calls lend, and
// what goes wrong with devices. rdma_test.cc has what holds over any NIC.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <thread>

#include "support/fake_verbs.h"
#include "support/link_pair.h"
#include "support/link_talker.h"
#include "transport/rdma/rail.h"

namespace jaxcoll {
namespace {

constexpr size_t kWindowBytes = size_t{1} << 20;
constexpr size_t kLargeBytes = 200'000;

class FakeRdmaTest : public testing::Test {
 protected:
  FakeRdmaTest() : FakeRdmaTest(std::random_device()()) {}
  explicit FakeRdmaTest(uint64_t seed)
      : random(seed), trace_(__FILE__, __LINE__, "seed " + std::to_string(seed)) {}

  // Both sides of a link, which knows that its peer is there.
  LinkPair& Link(int devices = 1, uint64_t register_bytes = 1) {
    pair_.reset();
    fake_.reset();
    fake_.emplace(random(), devices);
    return Again(register_bytes);
  }
  LinkPair& Again(uint64_t register_bytes = 1) {
    pair_.reset();
    pair_.emplace(LinkKind::kFakeRdma,
                  MakePairParts(LinkKind::kFakeRdma, kWindowBytes, register_bytes), kWindowBytes);
    Settle();
    return *pair_;
  }
  void Settle() {
    for (int idle = 0; idle < 50; ++idle) {
      if (pair_->a.Poll() | pair_->b.Poll()) idle = 0;
    }
  }
  static size_t Rails(LinkEnd& end) { return static_cast<RdmaLink&>(*end.link).live_rails(); }
  FakeVerbs& fake() { return *fake_; }

  static bool Holds(LinkEnd& end, size_t offset, size_t bytes, std::byte value) {
    const auto window = end.link->window().subspan(offset, bytes);
    return std::all_of(window.begin(), window.end(), [&](std::byte b) { return b == value; });
  }

  std::mt19937_64 random;

 private:
  testing::ScopedTrace trace_;
  std::optional<FakeVerbs> fake_;
  std::optional<LinkPair> pair_;
};

// --- what a message costs: docs/explanation/transports.md has them, too --------------------------

TEST_F(FakeRdmaTest, AMessageCostsAsManyRequestsAndCompletionsAsTheReadmeSays) {
  struct Case {
    size_t bytes;
    uint64_t requests, doorbells, inlined;
  };
  for (const Case& c : {Case{0, 1, 1, 1}, Case{100, 2, 1, 2}, Case{100'000, 2, 1, 1}}) {
    LinkPair& pair = Link();
    std::memset(pair.a.link->staging(), 0x11, c.bytes);
    const FakeVerbs::Counts before = fake().counts();
    pair.a.link->Put({pair.a.link->staging(), c.bytes}, 0, Notice{1}, 0);
    Settle();
    const FakeVerbs::Counts after = fake().counts();
    EXPECT_EQ(after.requests - before.requests, c.requests) << c.bytes;
    EXPECT_EQ(after.doorbells - before.doorbells, c.doorbells) << c.bytes;
    EXPECT_EQ(after.inlined - before.inlined, c.inlined) << c.bytes;
    EXPECT_EQ(after.send_completions - before.send_completions, 1u) << c.bytes;
    EXPECT_EQ(after.receive_completions - before.receive_completions, 1u) << c.bytes;
    EXPECT_EQ(after.registrations, before.registrations) << c.bytes;
  }
}

TEST_F(FakeRdmaTest, InABurstOneRequestOf32TellsThatItIsDone) {
  LinkPair& pair = Link();
  const FakeVerbs::Counts before = fake().counts();
  constexpr uint64_t kPuts = 400;
  for (uint64_t i = 0; i < kPuts; ++i) pair.a.link->Put({}, 0, Notice{i}, 0);
  Settle();
  const FakeVerbs::Counts after = fake().counts();
  EXPECT_EQ(pair.b.notices.size(), kPuts);
  EXPECT_LE(after.send_completions - before.send_completions, kPuts / 32 + 4);
  // The receiver's report of credits, and the request that asks for the last completion.
  EXPECT_LE(after.requests - before.requests, kPuts + 3);
}

TEST_F(FakeRdmaTest, NicsThatTakeNothingInlineCarryTheSame) {
  for (const uint32_t limit : {0u, 64u, 100u}) {
    Link();
    fake().LimitInline(limit);
    LinkPair& pair = Again();
    for (uint64_t i = 0; i < 2000; ++i) {
      const std::vector<std::byte> source(i % 300, static_cast<std::byte>(i));
      pair.a.link->Put(source, i % 16 * 300, Notice{i}, 0);
      ASSERT_TRUE(pair.PollUntil([&] { return pair.b.notices.size() == i + 1; }));
      ASSERT_TRUE(Holds(pair.b, i % 16 * 300, source.size(), static_cast<std::byte>(i)));
    }
  }
}

// --- rights -------------------------------------------------------------------------------------

TEST_F(FakeRdmaTest, OnlyWindowsAndRingsMayBeWrittenByPeers) {
  LinkPair& pair = Link(2);
  EXPECT_EQ(fake().regions(), 8u);  // two sides, two rails, two each
  EXPECT_EQ(fake().regions_with_access(0), 4u);
  EXPECT_EQ(fake().regions_with_access(verbs::kAccessLocalWrite | verbs::kAccessRemoteWrite), 4u);
  const std::vector<std::byte> buffer(kLargeBytes);
  const auto loan = pair.a.link->Borrow(buffer);
  pair.a.link->PutFrom(*loan, buffer, 0, Notice{1}, 1);
  Settle();
  EXPECT_GT(fake().regions_with_access(0), 4u) << "what is lent may be read by its own NIC only";
  EXPECT_EQ(fake().regions_with_access(verbs::kAccessLocalWrite | verbs::kAccessRemoteWrite), 4u);
}

TEST_F(FakeRdmaTest, QueuePairsAreGivenTheSettingsOfPackets) {
  Link();
  RdmaConfig config = fake().Config();
  config.service_level = 5;
  config.traffic_class = 106;
  config.deadline_s = 60;
  auto one = std::move(*RdmaLink::Prepare(config, 4096, ""));
  auto other = std::move(*RdmaLink::Prepare(config, 4096, one->Offer()));
  auto [socket_a, socket_b] = SocketPair(SOCK_STREAM);
  ASSERT_TRUE(one->Join(1, socket_a.release(), other->Offer(), {}, "test").ok());
  const verbs::QpAttr attr = fake().last_connected();
  EXPECT_EQ(attr.ah_attr.sl, 5);
  EXPECT_EQ(attr.ah_attr.grh.traffic_class, 106);
  EXPECT_EQ(attr.ah_attr.grh.sgid_index, 0);
  EXPECT_EQ(attr.ah_attr.is_global, 1);
  EXPECT_EQ(attr.qp_access_flags, uint32_t{verbs::kAccessRemoteWrite});
  EXPECT_EQ(attr.timeout, RetriesFor(60).ack_timeout);
  EXPECT_EQ(attr.retry_cnt, 7);
  EXPECT_EQ(attr.rnr_retry, 6);
}

// --- lent buffers -------------------------------------------------------------------------------

TEST_F(FakeRdmaTest, ALentBufferIsSentFromWhereItLiesAndReportedOnce) {
  for (const int devices : {1, 2}) {
    LinkPair& pair = Link(devices);
    const size_t regions = fake().regions();
    const std::vector<std::byte> buffer(kLargeBytes, std::byte{0x77});
    auto loan = pair.a.link->Borrow(buffer);
    ASSERT_NE(loan, nullptr);
    EXPECT_FALSE(pair.a.link->PutFrom(*loan, buffer, 0, Notice{1}, 42));
    EXPECT_FALSE(pair.a.link->PutFrom(*loan, std::span(buffer).subspan(50'000, 60'000), 400'000,
                                      Notice{2}, 43));
    Settle();
    EXPECT_TRUE(Holds(pair.b, 0, kLargeBytes, std::byte{0x77}));
    EXPECT_TRUE(Holds(pair.b, 400'000, 60'000, std::byte{0x77}));
    EXPECT_EQ(pair.b.notices.size(), 2u);
    std::sort(pair.a.sent.begin(), pair.a.sent.end());
    EXPECT_EQ(pair.a.sent, (std::vector<uint64_t>{42, 43}));
    EXPECT_EQ(pair.a.link->staging()[0], std::byte{0}) << "it was copied";
    EXPECT_GT(fake().regions(), regions);
    loan.reset();
    EXPECT_EQ(fake().regions(), regions);
    EXPECT_EQ(Rails(pair.a), static_cast<size_t>(devices));
  }
}

TEST_F(FakeRdmaTest, SmallBuffersAreNotBorrowedAndSmallPutsAreCopied) {
  LinkPair& pair = Link(1, kLargeBytes);
  const std::vector<std::byte> buffer(kLargeBytes);
  EXPECT_EQ(pair.a.link->Borrow(std::span(buffer).first(kLargeBytes - 1)), nullptr);
  const auto loan = pair.a.link->Borrow(buffer);
  ASSERT_NE(loan, nullptr);
  const size_t regions = fake().regions();
  EXPECT_TRUE(pair.a.link->PutFrom(*loan, std::span(buffer).first(1000), 0, Notice{}, 1));
  EXPECT_EQ(fake().regions(), regions);
  EXPECT_EQ(Again(0).a.link->Borrow(buffer), nullptr) << "unless asked for, nothing is";
}

// The rest of a large array is not registered for the sake of one put.
TEST_F(FakeRdmaTest, ALargeBufferIsRegisteredPieceByPiece) {
  LinkPair& pair = Link();
  const std::vector<std::byte> buffer(size_t{11} << 20, std::byte{3});
  const auto loan = pair.a.link->Borrow(buffer);
  const size_t regions = fake().regions();
  constexpr size_t kPut = 131'072 - 64;  // pieces of 4 MiB are not a multiple of it
  size_t at = 0;
  for (; at + kPut <= buffer.size(); at += kPut) {
    pair.a.link->PutFrom(*loan, std::span(buffer).subspan(at, kPut), 0, Notice{at}, at);
    EXPECT_GE(fake().regions() - regions, at / (size_t{4} << 20));
    EXPECT_LE(fake().regions() - regions, at / (size_t{4} << 20) + 2);
    Settle();
  }
  EXPECT_EQ(pair.a.sent.size(), at / kPut);
}

TEST_F(FakeRdmaTest, ABufferTakenBackBeforeItIsThroughIsReadNoMoreAndArrivesAllTheSame) {
  for (const bool detached : {true, false}) {
    LinkPair& pair = Link(2);
    const size_t regions = fake().regions();
    fake().SetPort(0, false, /*told=*/false);  // what is given to it stays with it
    std::vector<std::byte> buffer(kLargeBytes, std::byte{0x66});
    auto loan = pair.a.link->Borrow(buffer);
    for (uint64_t i = 0; i < 4; ++i) {
      pair.a.link->PutFrom(*loan, buffer, i * kLargeBytes, Notice{i}, i);
    }
    Settle();
    EXPECT_LT(pair.b.notices.size(), 4u);
    for (uint64_t i = 0; detached && i < 4; ++i) pair.a.link->Detach(i);
    pair.a.sent.clear();
    loan.reset();
    EXPECT_EQ(fake().regions(), regions);
    std::fill(buffer.begin(), buffer.end(), std::byte{0xEE});
    ASSERT_TRUE(pair.PollUntil([&] { return pair.b.notices.size() == 4; }));
    EXPECT_TRUE(Holds(pair.b, 0, 4 * kLargeBytes, std::byte{0x66}));
    if (detached) {
      EXPECT_TRUE(pair.a.sent.empty());
    }
    EXPECT_EQ(Rails(pair.a), 1u);
  }
}

// The peer may have a put, and have freed its place, before this side's NIC says that it has
// completed.
TEST_F(FakeRdmaTest, ABufferTakenBackLateDoesNotSpoilThePutThatHasItsPlace) {
  LinkPair& pair = Link();
  const std::vector<std::byte> buffer(kLargeBytes, std::byte{1});
  std::byte* const staging = pair.a.link->staging();
  for (uint64_t i = 0; i < 100; ++i) {
    auto loan = pair.a.link->Borrow(buffer);
    pair.a.link->PutFrom(*loan, buffer, 0, Notice{}, i);
    while (pair.b.notices.empty()) pair.b.Poll();  // and not the sender
    std::fill(staging, staging + kLargeBytes, std::byte{2});
    pair.a.link->Put({staging, kLargeBytes}, 0, Notice{}, 0);
    pair.a.link->Detach(i);
    loan.reset();
    ASSERT_TRUE(pair.PollUntil([&] { return pair.b.notices.size() == 2; }));
    ASSERT_TRUE(Holds(pair.b, 0, kLargeBytes, std::byte{2})) << i;
    pair.b.notices.clear();
  }
}

TEST_F(FakeRdmaTest, ABufferTakenBackFromAHealthyNicCostsNoRail) {
  LinkPair& pair = Link();
  std::vector<std::byte> buffer(kLargeBytes, std::byte{0x55});
  for (uint64_t i = 0; i < 100; ++i) {
    auto loan = pair.a.link->Borrow(buffer);
    pair.a.link->PutFrom(*loan, buffer, 0, Notice{i}, i);
    if (random() % 2 == 0) pair.a.Poll();
    pair.a.link->Detach(i);
    loan.reset();
    ASSERT_TRUE(pair.PollUntil([&] { return pair.b.notices.size() == i + 1; }));
  }
  EXPECT_EQ(Rails(pair.a), 1u);
  EXPECT_TRUE(pair.a.end.ok() && pair.b.end.ok());
}

TEST_F(FakeRdmaTest, MemoryThatCannotBeRegisteredIsCopied) {
  LinkPair& pair = Link(2);
  const std::vector<std::byte> buffer(kLargeBytes, std::byte{0x44});
  fake().LimitRegistration(0);
  auto loan = pair.a.link->Borrow(buffer);
  testing::internal::CaptureStderr();
  for (uint64_t i = 0; i < 4; ++i) {
    if (pair.a.link->PutFrom(*loan, buffer, i * kLargeBytes, Notice{i}, i)) {
      pair.a.sent.push_back(i);
    }
  }
  Settle();
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_NE(log.find("buffers of calls are copied"), std::string::npos) << log;
  EXPECT_NE(log.find("`ulimit -l`"), std::string::npos) << log;
  EXPECT_EQ(pair.b.notices.size(), 4u);
  EXPECT_TRUE(Holds(pair.b, 0, 4 * kLargeBytes, std::byte{0x44}));
  EXPECT_EQ(pair.a.sent.size(), 4u);
  EXPECT_EQ(pair.a.link->Borrow(buffer), nullptr) << "it need not be tried again";
}

TEST_F(FakeRdmaTest, ALoanMayOutliveItsLink) {
  LinkPair& pair = Link(2);
  const std::vector<std::byte> buffer(kLargeBytes);
  auto loan = pair.a.link->Borrow(buffer);
  pair.a.link->PutFrom(*loan, buffer, 0, Notice{}, 1);
  pair.a.CloseLink();
  EXPECT_EQ(fake().regions(), 4u) << "the peer's";
  loan.reset();
}

// --- a device's memory --------------------------------------------------------------------------

TEST_F(FakeRdmaTest, ADmabufIsSentFromWithoutACopyWhateverTheSize) {
  LinkPair& pair = Link(2);
  ASSERT_TRUE(pair.a.link->TakesDmabuf());
  const size_t regions = fake().regions();
  const std::vector<std::byte> device(kLargeBytes, std::byte{0x33});  // stands for its memory
  {
    auto loan = pair.a.link->BorrowDmabuf(7, 8192, device);
    ASSERT_TRUE(loan.ok()) << loan.status().message();
    EXPECT_EQ(fake().dmabufs(), (std::vector<uint64_t>{8192, 8192})) << "a rail each";
    EXPECT_EQ(fake().regions_with_access(0), 6u);
    const uint64_t inlined = fake().counts().inlined;
    EXPECT_FALSE(pair.a.link->PutFrom(**loan, std::span(device).first(20), 0, Notice{1}, 1));
    EXPECT_EQ(fake().counts().inlined - inlined, 1u) << "the notice alone";
    EXPECT_FALSE(pair.a.link->PutFrom(**loan, device, 1000, Notice{2}, 2));
    Settle();
    EXPECT_EQ(pair.a.sent.size(), 2u);
    EXPECT_TRUE(Holds(pair.b, 0, 20, std::byte{0x33}));
    EXPECT_TRUE(Holds(pair.b, 1000, kLargeBytes, std::byte{0x33}));
    EXPECT_EQ(pair.a.link->staging()[0], std::byte{0});
  }
  EXPECT_EQ(fake().regions(), regions);
}

TEST_F(FakeRdmaTest, ADmabufThatNoNicTakesIsAReason) {
  LinkPair& pair = Link(2);
  const std::vector<std::byte> device(4096);
  const size_t regions = fake().regions();
  EXPECT_FALSE(pair.a.link->BorrowDmabuf(-1, 0, device).ok());
  EXPECT_EQ(fake().regions(), regions);
  fake().WithoutDmabuf();
  EXPECT_FALSE(pair.a.link->TakesDmabuf());
  const auto refused = pair.a.link->BorrowDmabuf(7, 0, device);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.status().message().find("needs rdma-core 34"), std::string::npos);
}

// The peer has said that it has a put: its source is written anew at once, whatever this side's NIC
// still believes. Rails fail anywhere, and their lost writes are repeated.
TEST_F(FakeRdmaTest, DeliveredBytesAreNeverReadAgain) {
  constexpr size_t kSlot = 1000, kSlots = 8;
  for (int round = 0; round < 30; ++round) {
    LinkPair& pair = Link(3);
    std::vector<std::byte> device(kSlots * kSlot);
    auto loan = std::move(*pair.a.link->BorrowDmabuf(7, 0, device));
    uint64_t sent = 0, came = 0;
    const auto put = [&](uint64_t slot) {
      const auto source = std::span(device).subspan(slot * kSlot, kSlot);
      std::fill(source.begin(), source.end(), static_cast<std::byte>(++sent));
      pair.a.link->PutFrom(*loan, source, slot * kSlot, Notice{slot, sent}, 0);
    };
    pair.b.on_notice = [&](const Notice& notice) {
      ++came;
      ASSERT_TRUE(Holds(pair.b, notice[0] * kSlot, kSlot, static_cast<std::byte>(notice[1])))
          << "put " << notice[1];
      if (sent < 400) put(notice[0]);
    };
    for (const int rail : {1, 2}) {
      fake().FailRequest(rail, static_cast<int>(random() % 150), verbs::kWcRetryExcErr);
    }
    for (uint64_t slot = 0; slot < kSlots; ++slot) put(slot);
    ASSERT_TRUE(pair.PollUntil([&] { return came >= 400; })) << came;
    Settle();
    EXPECT_EQ(came, sent) << "none comes twice";
    EXPECT_TRUE(pair.a.end.ok() && pair.b.end.ok());
  }
}

TEST_F(FakeRdmaTest, DeviceMemoryTakenBackTooEarlyEndsTheLinkForItCannotBeCopied) {
  LinkPair& pair = Link(2);
  fake().SetPort(0, false, false);
  fake().SetPort(1, false, false);
  const std::vector<std::byte> device(kLargeBytes);
  auto loan = std::move(*pair.a.link->BorrowDmabuf(7, 0, device));
  pair.a.link->PutFrom(*loan, device, 0, Notice{}, 1);
  pair.a.link->Detach(1);
  loan.reset();
  pair.a.Poll();
  EXPECT_NE(pair.a.end.message().find("device memory was taken back"), std::string::npos)
      << pair.a.end.message();
}

// --- what goes wrong ----------------------------------------------------------------------------

TEST_F(FakeRdmaTest, AnErrorNamesNicPortPeerAndWhatToLookAt) {
  struct Case {
    verbs::WcStatus status;
    const char* advice;
  };
  for (const Case& c : {Case{verbs::kWcRetryExcErr, "look at both ports"},
                        Case{verbs::kWcRnrRetryExcErr, "posted no receives"},
                        Case{verbs::kWcRemAccessErr, "refuses access"},
                        Case{verbs::kWcRemOpErr, "could not carry it out"},
                        Case{verbs::kWcLocProtErr, "no longer registered"}}) {
    LinkPair& pair = Link();
    fake().FailRequest(0, 0, c.status);
    pair.a.link->Put({}, 0, Notice{}, 0);
    ASSERT_TRUE(pair.PollUntil([&] { return !pair.a.end.ok() && !pair.b.end.ok(); }));
    for (const LinkEnd* end : {&pair.a, &pair.b}) {
      const std::string& text = end->end.message();
      for (const char* part :
           {end == &pair.a ? "peer process 7" : "peer process 8", "fake0:1 (",
            "a work request failed: fake failure (status ", "vendor's code 77", c.advice}) {
        EXPECT_NE(text.find(part), std::string::npos) << part << " in " << text;
      }
    }
  }
}

TEST_F(FakeRdmaTest, AnErrorThatADeviceReportsEndsItsRailAndSaysSo) {
  for (const auto event : {verbs::kEventDeviceFatal, verbs::kEventQpFatal}) {
    LinkPair& pair = Link();
    fake().RaiseEvent(0, event);
    ASSERT_TRUE(pair.PollUntil([&] { return !pair.a.end.ok() && !pair.b.end.ok(); }));
    EXPECT_NE(pair.a.end.message().find("fake event"), std::string::npos) << pair.a.end.message();
  }
}

TEST_F(FakeRdmaTest, APortThatIsDownLeavesItsTrafficToTheOthersAndTheLossIsLogged) {
  LinkPair& pair = Link(2);
  fake().SetPort(1, false);
  testing::internal::CaptureStderr();
  for (uint64_t i = 0; i < 100; ++i) {
    const std::vector<std::byte> source(i * 100, std::byte{9});
    pair.a.link->Put(source, i * 10'000, Notice{i}, i);
  }
  EXPECT_TRUE(pair.PollUntil([&] { return pair.b.notices.size() == 100; }));
  EXPECT_TRUE(pair.PollUntil([&] { return Rails(pair.b) == 1; }));
  Settle();
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_EQ(Rails(pair.a), 1u);
  for (const char* part :
       {"an RDMA rail has failed, fake1:1 (", "its port went down", "rails left: 1"}) {
    EXPECT_NE(log.find(part), std::string::npos) << log;
  }
}

TEST_F(FakeRdmaTest, TheOnlyPortMayBeDownForAWhile) {
  LinkPair& pair = Link();
  fake().SetPort(0, false);
  for (uint64_t i = 0; i < 10; ++i) pair.a.link->Put({}, 0, Notice{i}, i);
  Settle();
  EXPECT_TRUE(pair.b.notices.empty());
  EXPECT_TRUE(pair.a.end.ok() && pair.b.end.ok());
  fake().SetPort(0, true);
  EXPECT_TRUE(pair.PollUntil([&] { return pair.b.notices.size() == 10; }));
}

TEST_F(FakeRdmaTest, ADeviceThatCannotBeUsedIsLeftOutAsLongAsOneCan) {
  Link(2);
  // The first device registers window and staging memory with their rings.
  Again();
  fake().LimitRegistration(2 * (kWindowBytes + 2 * RdmaRail::kRingBytes));
  testing::internal::CaptureStderr();
  const auto one = RdmaLink::Prepare(fake().Config(), kWindowBytes, "");
  const std::string log = testing::internal::GetCapturedStderr();
  ASSERT_TRUE(one.ok()) << one.status().message();
  EXPECT_EQ((*one)->live_rails(), 1u);
  EXPECT_NE(log.find("an RDMA port is left out, fake1:1: registering"), std::string::npos) << log;
  const auto none = RdmaLink::Prepare(fake().Config(), kWindowBytes, "");
  ASSERT_FALSE(none.ok());
  EXPECT_NE(none.status().message().find("a process may lock"), std::string::npos);
}

// Either side, any rail, any request, while buffers are lent, sent and taken back; puts in flight
// arrive once. As long as one rail is left, neither side sees an error.
TEST_F(FakeRdmaTest, ConversationsSurviveRailsThatFailAnywhere) {
  const char* const fixed = std::getenv("JAXCOLL_TEST_SEED");
  const char* const more = std::getenv("JAXCOLL_TEST_SEEDS");
  const int count = fixed != nullptr ? 1 : more != nullptr ? std::atoi(more) : 20;
  for (int round = 0; round < count; ++round) {
    const uint64_t seed = fixed != nullptr ? std::strtoull(fixed, nullptr, 10) : random();
    SCOPED_TRACE("JAXCOLL_TEST_SEED=" + std::to_string(seed));
    random.seed(seed);
    const int devices = 2 + static_cast<int>(random() % 2);
    LinkPair& pair = Link(devices);
    constexpr uint64_t kCount = 400;
    Talker talker_a(pair.a, kWindowBytes, kCount, false, random());
    Talker talker_b(pair.b, kWindowBytes, kCount, false, random());
    talker_a.lends = random() % 2;
    talker_b.lends = random() % 2;
    std::vector<uint64_t> at;
    for (int device = 1; device < devices; ++device) at.push_back(random() % kCount);
    talker_a.on_turn = [&](uint64_t received) {
      for (int device = 1; device < devices; ++device) {
        if (received < at[device - 1]) continue;
        at[device - 1] = ~uint64_t{0};
        switch (random() % 3) {
          case 0:
            return fake().FailRequest(device, static_cast<int>(random() % 40),
                                      verbs::kWcRetryExcErr);
          case 1:
            return fake().SetPort(device, false);
          default:
            return static_cast<RdmaLink&>(*pair.a.link).BreakRail(device);
        }
      }
    };
    // In turns of one thread, so that a seed says all.
    std::optional<std::string> end_a, end_b;
    while (!end_a || !end_b) {
      if (!end_a) end_a = talker_a.Turn();
      pair.a.Poll();
      if (!end_b) end_b = talker_b.Turn();
      pair.b.Poll();
    }
    ASSERT_EQ(*end_a, "");
    ASSERT_EQ(*end_b, "");
    ASSERT_GE(Rails(pair.a), 1u);
  }
}

}  // namespace
}  // namespace jaxcoll
