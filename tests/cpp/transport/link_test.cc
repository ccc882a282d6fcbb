// One suite over every transport: what transport/link.h promises.

#include "transport/link.h"

#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <numeric>
#include <optional>
#include <random>
#include <set>
#include <thread>

#include "support/link_pair.h"
#include "support/link_talker.h"
#include "transport/shm/ring.h"

namespace jaxcoll {
namespace {

constexpr size_t kWindowBytes = size_t{1} << 20;
constexpr std::byte kUntouched{0xA5};

uint64_t Seed() {
  static const uint64_t seed = std::random_device()();
  return seed;
}

std::vector<std::byte> RandomBytes(std::mt19937_64& random, size_t count) {
  std::vector<std::byte> bytes(count + 8);
  for (size_t i = 0; i < count; i += 8) {
    const uint64_t word = random();
    std::memcpy(bytes.data() + i, &word, 8);
  }
  bytes.resize(count);
  return bytes;
}

class LinkTest : public testing::TestWithParam<LinkKind> {
 protected:
  void SetUp() override {
    if (GetParam() == LinkKind::kFakeRdma) fake_.emplace(Seed());
    if (GetParam() != LinkKind::kRdma) return;
    // tests/rdma runs this suite where there is a device.
    if (!WhyNoTestRdma().empty()) GTEST_SKIP() << WhyNoTestRdma();
  }
  LinkTest() : trace_(__FILE__, __LINE__, "seed " + std::to_string(Seed())), random(Seed()) {}

 private:
  testing::ScopedTrace trace_;
  std::optional<FakeVerbs> fake_;

 protected:
  std::mt19937_64 random;
};

TEST_P(LinkTest, SaysWhatItIs) {
  LinkPair pair(GetParam(), kWindowBytes);
  const std::string transport = IsRdma(GetParam()) ? "rdma" : IsTcp(GetParam()) ? "tcp" : "shm";
  EXPECT_EQ(pair.a.link->transport(), transport);
  EXPECT_EQ(pair.a.link->Describe().find("test"), 0u);
  EXPECT_EQ(pair.a.link->window().size(), kWindowBytes);
  EXPECT_EQ(pair.a.link->remote_window_bytes(), kWindowBytes);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(pair.a.link->window().data()) % 4096, 0u);
}

TEST_P(LinkTest, PutsOfEverySizeArriveExactly) {
  LinkPair pair(GetParam(), kWindowBytes);
  const std::span<std::byte> window = pair.b.link->window();
  std::vector<std::byte> expected(kWindowBytes, kUntouched);
  std::fill(window.begin(), window.end(), kUntouched);

  std::vector<size_t> sizes = {0, 1, 7, 64, 72, 4095, 4096, 4097, 8192, 8193, 65536, 300'001};
  sizes.insert(sizes.end(), {kWindowBytes - 1, kWindowBytes, kWindowBytes});
  for (int i = 0; i < 50; ++i) sizes.push_back(random() % (size_t{1} << random() % 21));
  for (uint64_t token = 0; token < sizes.size(); ++token) {
    const size_t size = sizes[token];
    const size_t offset = random() % (kWindowBytes - size + 1);
    std::vector<std::byte> source = RandomBytes(random, size);
    std::copy(source.begin(), source.end(), expected.begin() + offset);
    const Notice notice = {token, size, offset, ~token, 0, 42};
    pair.a.sent.clear();
    bool reusable = pair.a.link->Put(source, offset, notice, token);
    const auto scribble = [&] { std::fill(source.begin(), source.end(), std::byte{0xEE}); };
    if (reusable) scribble();
    ASSERT_TRUE(pair.PollUntil([&] {
      if (!reusable && !pair.a.sent.empty()) {
        EXPECT_EQ(pair.a.sent, std::vector{token});
        scribble();
        reusable = true;
      }
      return reusable && !pair.b.notices.empty();
    }));
    ASSERT_EQ(pair.b.notices, std::vector{notice});
    pair.b.notices.clear();
    ASSERT_EQ(std::memcmp(window.data(), expected.data(), kWindowBytes), 0)
        << size << " bytes at " << offset;
  }
  EXPECT_TRUE(pair.a.notices.empty());
}

TEST_P(LinkTest, AnEmptyWindowTakesNotices) {
  LinkPair pair(GetParam(), 0);
  EXPECT_TRUE(pair.a.link->Put({}, 12345, Notice{1}, 0));
  EXPECT_TRUE(pair.PollUntil([&] { return pair.b.notices.size() == 1; }));
}

TEST_P(LinkTest, WhatLiesInTheRemoteWindowIsNotCopied) {
  LinkPair pair(GetParam(), kWindowBytes);
  std::byte* remote = pair.a.link->remote_window();
  EXPECT_EQ(remote != nullptr, GetParam() == LinkKind::kShm);
  if (remote == nullptr) return;
  std::memset(remote + 100, 0x33, 1000);
  EXPECT_TRUE(pair.a.link->Put({remote + 100, 1000}, 100, Notice{}, 0));
  ASSERT_TRUE(pair.PollUntil([&] { return pair.b.notices.size() == 1; }));
  EXPECT_EQ(pair.b.link->window()[1099], std::byte{0x33});
}

TEST_P(LinkTest, ThousandsOfPutsWaitForAPeerThatDoesNotPoll) {
  LinkPair pair(GetParam(), kWindowBytes);
  const uint64_t count = 10 * RingMemory::kEntryCount + 3;
  std::vector<std::byte> source = RandomBytes(random, 3000);
  for (uint64_t i = 0; i < count; ++i) {
    const size_t offset = i % 300 * source.size();
    EXPECT_TRUE(pair.a.link->Put(source, offset, Notice{i}, i));
    if (i % 16 == 0) pair.a.Poll();
  }
  ASSERT_TRUE(pair.PollUntil([&] { return pair.b.notices.size() == count; }));
  std::set<uint64_t> seen;
  for (const Notice& notice : pair.b.notices) seen.insert(notice[0]);
  EXPECT_EQ(seen.size(), count);
  for (size_t i = 0; i < 300; ++i) {
    EXPECT_EQ(std::memcmp(&pair.b.link->window()[i * source.size()], source.data(), source.size()),
              0);
  }
}

TEST_P(LinkTest, LargePutsWaitForAPeerThatDoesNotPollAndEachIsReportedOnce) {
  constexpr size_t kPutBytes = kWindowBytes / 4;
  constexpr size_t kBytes = 200 * kPutBytes;
  LinkPair pair(GetParam(), kBytes);
  const std::vector<std::byte> source = RandomBytes(random, kBytes);
  std::set<uint64_t> owed;
  for (uint64_t i = 0; i < 200; ++i) {
    const size_t offset = i * kPutBytes;
    if (!pair.a.link->Put(std::span(source).subspan(offset, kPutBytes), offset, Notice{i}, i)) {
      owed.insert(i);
    }
    pair.a.Poll();
  }
  // A NIC takes bytes whether its process polls or not.
  if (!IsRdma(GetParam())) {
    EXPECT_EQ(pair.a.link->writable_fds().empty(), GetParam() == LinkKind::kShm);
  }
  ASSERT_TRUE(pair.PollUntil([&] { return pair.b.notices.size() == 200; }));
  ASSERT_TRUE(pair.PollUntil([&] { return pair.a.sent.size() >= owed.size(); }));
  std::sort(pair.a.sent.begin(), pair.a.sent.end());
  EXPECT_EQ(pair.a.sent, std::vector<uint64_t>(owed.begin(), owed.end()));
  EXPECT_EQ(std::memcmp(pair.b.link->window().data(), source.data(), kBytes), 0);
  EXPECT_TRUE(pair.PollUntil([&] { return pair.a.link->writable_fds().empty(); }));
}

TEST_P(LinkTest, MessagesOfAllSizesComeInOrder) {
  LinkPair pair(GetParam(), kWindowBytes);
  std::vector<std::string> messages = {"", "a", std::string(65536, 'b'), std::string("\0\1", 2)};
  for (int i = 0; i < 100; ++i) messages.emplace_back(random() % 65537, static_cast<char>(i));
  for (const std::string& message : messages) {
    pair.a.link->Tell(message);
    if (message.size() % 3 == 0) pair.b.link->Tell(message);
  }
  ASSERT_TRUE(pair.PollUntil([&] { return pair.b.told.size() == messages.size(); }));
  EXPECT_EQ(pair.b.told, messages);
  std::erase_if(messages, [](const std::string& message) { return message.size() % 3 != 0; });
  ASSERT_TRUE(pair.PollUntil([&] { return pair.a.told.size() == messages.size(); }));
  EXPECT_EQ(pair.a.told, messages);
}

TEST_P(LinkTest, ASinkMayPutAndTell) {
  constexpr size_t kPlaces = 200;
  const std::vector<std::byte> source = RandomBytes(random, 100'000);
  LinkPair pair(GetParam(), kPlaces * source.size());
  uint64_t turns = 0;
  const auto answer = [&](LinkEnd& end) {
    if (++turns > 2000) return;
    if (turns % 3 == 0) {
      end.link->Tell(std::to_string(turns));
    } else {
      const std::span part = std::span(source).first(random() % source.size());
      end.link->Put(part, turns % kPlaces * source.size(), Notice{turns}, turns);
    }
  };
  for (LinkEnd* end : {&pair.a, &pair.b}) {
    end->on_notice = [&, end](const Notice&) { answer(*end); };
    end->on_told = [&, end](std::string_view) { answer(*end); };
    end->on_sent = [&, end](uint64_t) { end->link->Put({}, 0, Notice{}, 0); };
  }
  pair.a.link->Tell("go");
  EXPECT_TRUE(pair.PollUntil([&] { return turns > 2000; }));
}

TEST_P(LinkTest, PollDeliversAtMostItsBudget) {
  LinkPair pair(GetParam(), kWindowBytes);
  for (uint64_t i = 0; i < 100; ++i) pair.a.link->Put({}, 0, Notice{i}, i);
  size_t before = 0;
  ASSERT_TRUE(pair.PollUntil([&] {
    pair.b.Poll(3);
    // PollUntil itself polls with a budget of 64.
    EXPECT_LE(pair.b.notices.size(), before + 67);
    before = pair.b.notices.size();
    return before > 0;
  }));
  ASSERT_TRUE(pair.PollUntil([&] { return pair.b.notices.size() == 100; }));
}

void Talk(LinkKind kind, uint64_t count, bool pauses) {
  LinkPair pair(kind, kWindowBytes);
  Talker talker_a(pair.a, kWindowBytes, count, pauses, Seed());
  Talker talker_b(pair.b, kWindowBytes, count, pauses, Seed() + 1);
  std::string error_b;
  std::thread thread([&] { error_b = talker_b.Run(); });
  EXPECT_EQ(talker_a.Run(), "");
  thread.join();
  EXPECT_EQ(error_b, "");
}

TEST_P(LinkTest, TwoThreadsPutAtTheSameTimeAndNothingIsLostOrTwice) {
  Talk(GetParam(), 20'000, /*pauses=*/false);
}

TEST_P(LinkTest, NoWakeUpIsLostAmongRandomPauses) { Talk(GetParam(), 5'000, /*pauses=*/true); }

// Each waits for the other's notice each time: a lost wake-up stops both.
TEST_P(LinkTest, NoWakeUpIsLostInPingPong) {
  LinkPair pair(GetParam(), kWindowBytes);
  constexpr uint64_t kRounds = 5000;
  const auto play = [](LinkEnd& end, bool serves, uint64_t seed) {
    std::mt19937_64 random(seed);
    uint64_t rounds = 0;
    end.on_notice = [&](const Notice&) {
      for (volatile uint64_t i = random() % 300; i > 0;) i = i - 1;
      if (++rounds <= kRounds) end.link->Put({}, 0, Notice{rounds}, 0);
    };
    if (serves) end.link->Put({}, 0, Notice{}, 0);
    while (rounds < kRounds && end.end.ok()) {
      if (!end.PollOrSleep()) return false;
    }
    return true;
  };
  bool b_played = false;
  std::thread thread([&] { b_played = play(pair.b, false, Seed()); });
  EXPECT_TRUE(play(pair.a, true, Seed() + 1));
  thread.join();
  EXPECT_TRUE(b_played);
}

// The same without luck: what comes just before or just after PrepareToSleep.
TEST_P(LinkTest, ANoticeIsSeenBeforeSleepOrEndsIt) {
  LinkPair pair(GetParam(), kWindowBytes);
  const auto awake = [&] {  // as a reactor finds out, without waiting for long
    if (!pair.b.link->PrepareToSleep()) return true;
    std::vector<pollfd> fds;
    for (int fd : pair.b.link->readable_fds()) fds.push_back({fd, POLLIN, 0});
    return poll(fds.data(), fds.size(), GetParam() == LinkKind::kShm ? 0 : 1000) > 0;
  };
  while (pair.a.Poll() | pair.b.Poll()) {
  }
  pair.a.link->Put({}, 0, Notice{}, 0);
  EXPECT_TRUE(awake());
  pair.b.link->Awake(true);
  while (pair.b.notices.empty() || pair.b.Poll()) pair.b.Poll();
  while (!pair.b.link->PrepareToSleep()) pair.b.Poll();
  pair.a.link->Put({}, 0, Notice{}, 0);
  EXPECT_TRUE(awake());
}

TEST_P(LinkTest, ASenderWithoutRoomSeesRoomBeforeItSleeps) {
  if (GetParam() != LinkKind::kShm) GTEST_SKIP() << "the kernel says when a socket has room";
  LinkPair pair(GetParam(), kWindowBytes);
  while (pair.a.Poll() | pair.b.Poll()) {
  }
  for (uint64_t i = 0; i <= RingMemory::kEntryCount; ++i) pair.a.link->Put({}, 0, Notice{}, 0);
  EXPECT_TRUE(pair.a.link->PrepareToSleep());
  EXPECT_TRUE(pair.b.Poll());
  EXPECT_FALSE(pair.a.link->PrepareToSleep());
}

TEST_P(LinkTest, ASenderWithoutRoomIsWokenWhenThereIsSome) {
  constexpr uint64_t kCount = 5 * RingMemory::kEntryCount;
  constexpr uint64_t kEvery = 100;  // one that is large
  const std::vector<std::byte> source = RandomBytes(random, 200'000);
  LinkPair pair(GetParam(), (kCount / kEvery + 1) * source.size());
  for (uint64_t i = 0; i < kCount; ++i) {
    const bool large = i % kEvery == 0;
    const size_t offset = large ? i / kEvery * source.size() : 0;
    pair.a.link->Put(std::span(source).first(large ? source.size() : 0), offset, Notice{i}, i);
  }
  std::thread thread([&] {
    while (pair.b.notices.size() < kCount && pair.b.PollOrSleep()) {
    }
    pair.b.link->Tell("done");
    while (!pair.b.link->writable_fds().empty() && pair.b.PollOrSleep()) {
    }
  });
  while (pair.a.told.empty() && pair.a.end.ok() && pair.a.PollOrSleep()) {
  }
  thread.join();
  EXPECT_EQ(pair.b.notices.size(), kCount);
  EXPECT_EQ(pair.a.told, std::vector<std::string>{"done"});
}

// --- the end ------------------------------------------------------------------------------------

void ExpectGone(LinkEnd& end) {
  EXPECT_EQ(end.end.code(), StatusCode::kUnavailable);
  EXPECT_EQ(end.end.message().find("peer process 7 (test) is gone"), 0u) << end.end.message();
  // It stays so, and the link can still be used to no effect.
  std::vector<std::byte> source(100'000);
  EXPECT_TRUE(end.link->Put(source, 0, Notice{}, 0));
  end.link->Tell("anybody?");
  EXPECT_FALSE(end.link->PrepareToSleep());
  EXPECT_FALSE(end.link->Poll(end, 64).ok());
}

TEST_P(LinkTest, WhatAPeerSentBeforeItClosedIsDelivered) {
  LinkPair pair(GetParam(), kWindowBytes);
  // Unread data at the closing side: its kernel says "reset" instead of "end".
  pair.a.link->Tell("never read");
  pair.a.link->Put({}, 0, Notice{}, 0);
  for (uint64_t i = 0; i < 300; ++i) pair.b.link->Put({}, 0, Notice{i}, i);
  pair.b.link->Tell("farewell");
  if (IsRdma(GetParam())) {  // else the kernel has it
    ASSERT_TRUE(pair.PollUntil([&] { return pair.b.link->writable_fds().empty(); }));
  }
  pair.b.CloseLink();
  while (pair.a.end.ok()) ASSERT_TRUE(pair.a.PollOrSleep());
  EXPECT_EQ(pair.a.notices.size(), 300u);
  EXPECT_EQ(pair.a.told, std::vector<std::string>{"farewell"});
  ExpectGone(pair.a);
}

// Between processes.
class LinkDeathTest : public LinkTest {};

// The child puts and tells, then kills itself as hard as can be.
TEST_P(LinkDeathTest, WhatAPeerSentBeforeSigkillIsDelivered) {
  for (const bool parent_waits_for_death : {true, false}) {
    auto parts = MakeParts(GetParam(), kWindowBytes);
    const pid_t child = ForkPeer(GetParam(), parts, kWindowBytes, [](LinkEnd& end) {
      // Tcp promises nothing if there are unread bytes, such as a greeting.
      while (end.told.empty()) end.Poll();
      for (uint64_t i = 0; i < 400; ++i) {
        std::vector<uint64_t> source(i % 20, i);
        end.link->Put(std::as_bytes(std::span(source)), i * 160, Notice{i, source.size()}, i);
      }
      end.link->Tell("last words");
      while (!end.link->writable_fds().empty()) end.Poll();
      kill(getpid(), SIGKILL);
    });
    LinkEnd end(GetParam(), std::move(parts.first), kWindowBytes, 7);
    end.link->Tell("go");
    if (parent_waits_for_death) {
      EXPECT_EQ(waitpid(child, nullptr, 0), child);
    }
    while (end.end.ok()) ASSERT_TRUE(end.PollOrSleep());
    if (!parent_waits_for_death) {
      EXPECT_EQ(waitpid(child, nullptr, 0), child);
    }
    ASSERT_EQ(end.notices.size(), 400u);
    for (const Notice& notice : end.notices) {
      for (uint64_t i = 0; i < notice[1]; ++i) {
        uint64_t word;
        std::memcpy(&word, end.link->window().data() + notice[0] * 160 + i * 8, 8);
        ASSERT_EQ(word, notice[0]);
      }
    }
    EXPECT_EQ(end.told, std::vector<std::string>{"last words"});
    ExpectGone(end);
  }
}

TEST_P(LinkDeathTest, DeathWakesASleeper) {
  auto parts = MakeParts(GetParam(), kWindowBytes);
  const pid_t child = ForkPeer(GetParam(), parts, kWindowBytes, [](LinkEnd& end) {
    end.link->Tell("here");
    while (true) pause();
  });
  LinkEnd end(GetParam(), std::move(parts.first), kWindowBytes, 7);
  while (end.told.empty()) ASSERT_TRUE(end.PollOrSleep());
  while (end.Poll() || !end.link->PrepareToSleep()) {
  }
  kill(child, SIGKILL);
  EXPECT_EQ(waitpid(child, nullptr, 0), child);
  while (end.end.ok()) ASSERT_TRUE(end.PollOrSleep());
  ExpectGone(end);
}

// Queued for a peer that never reads, then the peer dies: no source is owed an OnSent any more, and
// nothing hangs.
TEST_P(LinkTest, ThePeerMayDieWhileMuchIsQueued) {
  LinkPair pair(GetParam(), kWindowBytes);
  std::vector<std::byte> source(kWindowBytes);
  for (uint64_t i = 0; i < 5000; ++i) {
    pair.a.link->Put(std::span(source).first(i % 100 == 0 ? kWindowBytes : 10), 0, Notice{i}, i);
    if (i % 50 == 0) pair.a.link->Tell(std::string(10'000, 'x'));
  }
  pair.b.CloseLink();
  while (pair.a.end.ok()) ASSERT_TRUE(pair.a.PollOrSleep());
  source = {};
  ExpectGone(pair.a);
}

std::string NameOfCase(const testing::TestParamInfo<LinkKind>& info) { return NameOf(info.param); }

INSTANTIATE_TEST_SUITE_P(Transports, LinkTest,
                         testing::Values(LinkKind::kShm, LinkKind::kTcpPlain, LinkKind::kTcp4Plain,
                                         LinkKind::kTcp, LinkKind::kTcp4, LinkKind::kTcpEncrypted,
                                         LinkKind::kTcp4Encrypted, LinkKind::kRdma,
                                         LinkKind::kFakeRdma),
                         NameOfCase);
// What is fake has one process.
INSTANTIATE_TEST_SUITE_P(Transports, LinkDeathTest,
                         testing::Values(LinkKind::kShm, LinkKind::kTcp, LinkKind::kTcp4,
                                         LinkKind::kTcp4Encrypted, LinkKind::kRdma),
                         NameOfCase);

// The ring alone, at one address: what ThreadSanitizer can judge.
TEST(RingTest, EachNoticeComesOnceAndInOrder) {
  auto memory = std::make_unique<RingMemory>();
  constexpr uint64_t kCount = 200'000;
  std::thread thread([&] {
    RingProducer producer(memory.get());
    for (uint64_t i = 0; i < kCount;) {
      const RingResult result = producer.Push(Notice{i, 0, 0, 0, 0, ~i});
      ASSERT_NE(result, RingResult::kBroken);
      i += result == RingResult::kDone;
      if (result == RingResult::kWait) std::this_thread::yield();
    }
  });
  RingConsumer consumer(memory.get());
  for (uint64_t i = 0; i < kCount;) {
    Notice notice;
    const RingResult result = consumer.Pop(notice);
    ASSERT_NE(result, RingResult::kBroken);
    if (result == RingResult::kWait) {
      consumer.Release();
      std::this_thread::yield();
      continue;
    }
    ASSERT_EQ(notice[0], i);
    ASSERT_EQ(notice[5], ~i++);
    if (i % 100 == 0) consumer.Release();
  }
  thread.join();
}

}  // namespace
}  // namespace jaxcoll
