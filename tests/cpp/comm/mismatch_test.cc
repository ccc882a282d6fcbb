// Processes that wait for each other in different calls: what each finds out, and when it is sure.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "comm/difference.h"
#include "comm/listing.h"
#include "support/reactor_alone.h"

namespace jaxcoll {
namespace {

WaitingCall Calls(uint64_t key, const std::string& operation, int64_t elements,
                  const Alone& process) {
  WaitingCall call;
  call.id = {key, 0};
  call.instruction = key;
  call.since_s = 5;
  call.serial = process.serial;
  call.program = "other";
  call.operands = "float32[" + std::to_string(elements) + ']';
  call.description = operation + " of " + call.operands + ", algorithm direct";
  call.parts = {{"collectives", operation}, {"shapes", '[' + std::to_string(elements) + ']'}};
  return call;
}

// Process 0 waits in an all_reduce of 4 elements, and process 1 says for so long that it waits in
// `theirs`. Returns how process 0's call has ended; empty: it waits on.
std::string WaitAgainst(Alone& process, FakeLink& peer, RemoteGroup& group,
                        const WaitingCall& theirs, double s = 2) {
  process.Start(group);
  for (int i = 0; i < 10 * s && process.ended.empty(); ++i) {
    process.Wait(0.1);
    if (std::count(process.told.begin(), process.told.end(), "ask") != 0) {
      process.told.clear();
      peer.Tell("state waits in another\n" + Encode(theirs));
    }
  }
  return process.ended.empty() ? "" : std::string(process.ended[0].message());
}

TEST(Mismatch, IsAWarningWhileAnotherThreadMayMakeTheCall) {
  Alone process(2, 20);
  FakeLink& peer = process.Connect(1);
  const auto group = process.Open(2, "all_reduce");
  testing::internal::CaptureStderr();
  const std::string message =
      WaitAgainst(process, peer, *group, Calls(7, "all_reduce", 5, process), 30);
  const std::string logged = testing::internal::GetCapturedStderr();
  const std::string words =
      "process 0 waits in all_reduce, process 1 in the same of float32[5]: shapes differ";
  const size_t first = logged.find(words);
  EXPECT_NE(first, logged.npos) << logged;
  EXPECT_EQ(logged.find(words, first + 1), logged.npos) << logged;
  // At the deadline, with the same words.
  EXPECT_NE(message.find("waited 20"), std::string::npos) << message;
  EXPECT_NE(message.find(words), std::string::npos) << message;
}

TEST(Mismatch, IsAnErrorWhereAnInstructionRunsWithOtherShapes) {
  Alone process(2, 20);
  FakeLink& peer = process.Connect(1);
  const auto group = process.Open(2, "all_reduce");
  process.instruction = "all_reduce";
  WaitingCall theirs = Calls(7, "all_reduce", 5, process);
  // Process 0's answer about its own call when it is asked.
  process.Start(*group);
  peer.Tell("ask");
  process.Settle();
  const std::string state = process.told.back();
  const auto mine = DecodeWaitingCall(state.substr(state.find('\n') + 1));
  ASSERT_TRUE(mine.has_value()) << state;
  theirs.instruction = mine->instruction;
  const std::string message = WaitAgainst(process, peer, *group, theirs);
  EXPECT_NE(message.find("shapes differ"), std::string::npos) << message;
}

TEST(Mismatch, IsAnErrorWhereNoOtherLaunchCanBegin) {
  Alone process(2, 20);
  process.serial = true;
  FakeLink& peer = process.Connect(1);
  const auto group = process.Open(2, "all_reduce");
  const std::string message =
      WaitAgainst(process, peer, *group, Calls(7, "all_gather", 4, process));
  EXPECT_NE(message.find("collectives differ"), std::string::npos) << message;
  EXPECT_NE(message.find("launch from one thread"), std::string::npos) << message;
}

TEST(Mismatch, TheFirstLineInWhichProgramsDifferIsTold) {
  Alone process(2, 20);
  FakeLink& peer = process.Connect(1);
  process.reactor->AddListing(
      "f", {"step", {"function step", "a @ train.py:1", "mul 1.0 @ train.py:2", "c"}});
  Listings theirs;
  theirs.Add("other", {"step", {"function step", "a @ other.py:9", "mul 2.0 @ other.py:10", "c"}});
  const auto group = process.Open(2, "all_reduce");
  WaitingCall call = Calls(7, "all_reduce", 4, process);
  process.Start(*group);
  testing::internal::CaptureStderr();
  size_t answered = 0;
  for (int i = 0; i < 30; ++i) {
    process.Wait(0.1);
    for (; answered < process.told.size(); ++answered) {
      const std::string& question = process.told[answered];
      peer.Tell(question == "ask" ? "state waits\n" + Encode(call) : theirs.Answer(question));
    }
  }
  const std::string logged = testing::internal::GetCapturedStderr();
  EXPECT_NE(logged.find("line 3 of `step` is `mul 1.0` (train.py:2) in process 0 and `mul 2.0` "
                        "(other.py:10) in process 1"),
            logged.npos)
      << logged;
}

TEST(Mismatch, AProcessThatWaitsInTheSameCallIsNotAccused) {
  Alone process(2, 20);
  FakeLink& peer = process.Connect(1);
  const auto group = process.Open(2, "all_reduce");
  process.Start(*group);
  peer.Tell("ask");
  process.Settle();
  const std::string state = process.told.back();
  const auto mine = DecodeWaitingCall(state.substr(state.find('\n') + 1));
  ASSERT_TRUE(mine.has_value());
  testing::internal::CaptureStderr();
  EXPECT_EQ(WaitAgainst(process, peer, *group, *mine), "");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST(Mismatch, APeersWordsAreTakenAsText) {
  EXPECT_FALSE(DecodeWaitingCall("").has_value());
  EXPECT_FALSE(DecodeWaitingCall("x\ty").has_value());
  const auto call = DecodeWaitingCall("1\t2\t3\t4\t5\t0\tp\t\x1b[31mred\to\tshapes=\xff\x01");
  ASSERT_TRUE(call.has_value());
  EXPECT_EQ(call->description.find('\x1b'), std::string::npos);
  WaitingCall mine;
  mine.parts = {{"shapes", "[4]"}};
  EXPECT_EQ(PartsThatDiffer(mine, *call), std::vector<std::string>{"shapes"});
}

// Compares two listings as two processes do; returns the texts of the first line that differs.
std::vector<std::string> Compare(std::vector<std::string> here, std::vector<std::string> there) {
  const Listing own{"f", std::move(here)};
  Listings theirs;
  theirs.Add("t", {"f", std::move(there)});
  Comparison comparison("o", "t");
  std::string question = comparison.Question();
  for (int i = 0; i < 1000 && !question.empty(); ++i) {
    question = comparison.OnAnswer(theirs.Answer(question), own);
  }
  EXPECT_TRUE(comparison.done());
  if (!comparison.line()) return {};
  return {std::to_string(*comparison.line()), comparison.text_here(), comparison.text_there()};
}

TEST(Listing, FindsTheFirstLineThatDiffers) {
  std::vector<std::string> lines;
  for (int i = 0; i < 5000; ++i) lines.push_back("op " + std::to_string(i) + " @ a.py:1");
  EXPECT_EQ(Compare(lines, lines), std::vector<std::string>{});
  for (const size_t at : {size_t{0}, size_t{511}, size_t{512}, size_t{4999}}) {
    std::vector<std::string> other = lines;
    other[at] = "else @ b.py:2";
    EXPECT_EQ(Compare(lines, other),
              (std::vector<std::string>{std::to_string(at), lines[at], other[at]}));
  }
  const std::vector<std::string> shorter(lines.begin(), lines.begin() + 1024);
  EXPECT_EQ(Compare(lines, shorter), (std::vector<std::string>{"1024", lines[1024], ""}));
  EXPECT_EQ(Compare(shorter, lines), (std::vector<std::string>{"1024", "", lines[1024]}));
  EXPECT_EQ(Compare({}, {}), std::vector<std::string>{});
  // The place of a line does not count as a difference.
  EXPECT_EQ(Compare({"op @ a.py:1"}, {"op @ b.py:2"}), std::vector<std::string>{});
}

TEST(Listing, DishonestAnswersEndTheComparison) {
  const Listing own{"f", {"a", "b"}};
  for (const char* answer : {"digests t 0 5 ", "digests t 0 0 ", "digests t 0 x zz"}) {
    Comparison comparison("o", "t");
    std::string question = comparison.Question();
    for (int i = 0; i < 10 && !question.empty(); ++i) question = comparison.OnAnswer(answer, own);
    EXPECT_EQ(question, "") << answer;
  }
}

TEST(Listing, OldOnesAreForgotten) {
  Listings listings;
  for (int i = 0; i < 40; ++i) {
    listings.Add(std::to_string(i), {"f", {std::string(1 << 20, 'x')}});
    EXPECT_NE(listings.Find("0"), nullptr) << i;  // in use
  }
  EXPECT_EQ(listings.Find("1"), nullptr);
  EXPECT_NE(listings.Find("39"), nullptr);
}

}  // namespace
}  // namespace jaxcoll
