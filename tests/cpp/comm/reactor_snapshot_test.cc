// The facts that a reactor gives about its calls, and the words about its place that it passes on.
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "support/reactor_alone.h"

namespace jaxcoll {
namespace {

constexpr char kPlace[] = "it is in Python at train.py:31 (load)";

TEST(ReactorSnapshot, HasThePendingCallAndTheRankThatItWaitsFor) {
  Alone process(2);
  process.Connect(1);
  const auto group = process.Open(2, "all_reduce");
  process.Start(*group);
  process.Wait(0.5);
  const ReactorSnapshot snapshot = process.reactor->TakeSnapshot();
  ASSERT_EQ(snapshot.pending.size(), 1u);
  const PendingCall& call = snapshot.pending[0];
  EXPECT_EQ(call.description, "all_reduce");
  EXPECT_EQ(call.waits_for, std::vector<int32_t>{1});
  EXPECT_EQ(call.process_of_rank, (std::vector<int>{0, 1}));
  EXPECT_NEAR(call.since_s, 0.5, 0.2);
  EXPECT_NEAR(call.moved_s.value_or(0), 0.5, 0.2);  // its own message, which went at once
  ASSERT_EQ(snapshot.next_numbers.size(), 1u);
  EXPECT_EQ(snapshot.next_numbers[0].first, call.key);
  EXPECT_EQ(snapshot.next_numbers[0].second, call.number + 1);
  ASSERT_EQ(snapshot.peers.size(), 1u);
  EXPECT_EQ(snapshot.peers[0].state, "up");
  EXPECT_TRUE(snapshot.failed.empty());
}

TEST(ReactorSnapshot, KeepsTheCallsOfACommunicatorThatHasFailedAndRingsTheWatcher) {
  Alone process(2);
  process.Connect(1);
  const int bell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  process.reactor->SetWatcher(bell);
  const auto group = process.Open(2, "all_reduce");
  process.Start(*group);
  process.Cut(1);
  process.Settle();
  ASSERT_EQ(process.ended.size(), 1u);
  uint64_t rung = 0;
  EXPECT_EQ(read(bell, &rung, sizeof(rung)), static_cast<ssize_t>(sizeof(rung)));
  close(bell);
  process.reactor->SetWatcher(-1);
  const ReactorSnapshot snapshot = process.reactor->TakeSnapshot();
  EXPECT_TRUE(snapshot.pending.empty());
  ASSERT_EQ(snapshot.failed.size(), 1u);
  EXPECT_NE(snapshot.failed[0].cause.find("rank 1 is lost"), std::string::npos);
  ASSERT_EQ(snapshot.failed[0].calls.size(), 1u);
  EXPECT_EQ(snapshot.failed[0].calls[0].description, "all_reduce");
  EXPECT_EQ(snapshot.peers[0].state, "down");
  ASSERT_EQ(snapshot.last.size(), 1u);
  EXPECT_FALSE(snapshot.last[0].status->ok());
}

TEST(ReactorSnapshot, APeerThatHasAskedIsToldThePlaceOnce) {
  Alone process(2);
  FakeLink& peer = process.Connect(1);
  process.reactor->SetPlace("it is elsewhere");
  process.Settle();
  EXPECT_TRUE(process.told.empty());  // nobody has asked
  process.Wait(1);
  peer.Tell("ask");
  process.Settle();
  ASSERT_EQ(process.told.size(), 1u);
  process.reactor->SetPlace(kPlace);
  process.reactor->SetPlace(kPlace);
  process.Settle();
  ASSERT_EQ(process.told.size(), 2u);
  EXPECT_EQ(process.told[1], std::string("state is in no collective; ") + kPlace);
}

TEST(ReactorSnapshot, APlaceFromBeforeTheLastCallIsNotTold) {
  Alone process(2);
  FakeLink& peer = process.Connect(1);
  process.reactor->SetPlace(kPlace);
  process.Wait(1);
  const auto group = process.Open(2, "all_reduce");
  process.Start(*group);
  process.reactor->interprocess().FailBegunBefore(std::chrono::steady_clock::time_point::max(),
                                                  true, "the test ends it");
  process.Settle();
  ASSERT_EQ(process.ended.size(), 1u);
  process.told.clear();
  peer.Tell("ask");
  process.Settle();
  ASSERT_EQ(process.told.size(), 1u);
  EXPECT_NE(process.told[0].find("is in no collective; its last one"), std::string::npos);
  EXPECT_EQ(process.told[0].find("train.py"), std::string::npos) << process.told[0];
}

TEST(ReactorSnapshot, TheWordsOfAPeerThatLeavesStandInTheErrorOfACallThatWaitsForIt) {
  Alone process(2);
  FakeLink& peer = process.Connect(1);
  const auto group = process.Open(2, "all_reduce");
  process.Start(*group);
  peer.Tell("end has raised KeyError: 'batch' at train.py:31 (load) and has ended");
  peer.Tell("bye");
  process.Settle();
  process.Cut(1);
  process.Wait(0.5);
  ASSERT_EQ(process.ended.size(), 1u);
  const std::string message = process.ended[0].message();
  EXPECT_NE(message.find("waits for rank 1, but process 1"), std::string::npos) << message;
  EXPECT_NE(message.find("has raised KeyError: 'batch' at train.py:31"), std::string::npos)
      << message;
}

}  // namespace
}  // namespace jaxcoll
