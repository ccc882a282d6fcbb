// Running a world, what goes wrong in it, and checking what came of it.
#include <gtest/gtest.h>

#include <cstring>

#include "support/reactor_world.h"

namespace jaxcoll {
namespace {

using std::chrono::microseconds;

constexpr double kTimeoutS = 1;

// Faster than ==, which compares bytes one by one.
bool Equal(const std::vector<std::byte>& a, const std::vector<std::byte>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace

class ReactorWorld::SimCompletion final : public Completion {
 public:
  SimCompletion(ReactorWorld* world, int process, int site, ProcessCall* call, size_t member)
      : world_(world), process_(process), site_(site), call_(call), member_(member) {}
  void Done(const Status& status) override {
    Outcome& outcome = call_->outcomes[member_];
    ++outcome.done;
    outcome.status = status;
    // All members of a call end together, so what is there now must stay.
    if (call_->at_completion.empty()) call_->at_completion = call_->outputs;
    Process& process = world_->processes_[process_];
    if (process.chains && Chance(world_->random_, 50)) world_->SubmitNext(process);
  }

 private:
  ReactorWorld* const world_;
  const int process_;
  [[maybe_unused]] const int site_;
  ProcessCall* const call_;
  const size_t member_;
};

void ReactorWorld::Run() {
  Build();
  ScheduleFault();
  MakeProcesses();
  RunUntilQuiet();
  ResumeAll();
  RunUntilQuiet();
  CheckFirstRound();
  fault_at_step_ = 0;
  // Once more on every site, to see who knows what, and once more when all know.
  for (int round = 0; fault_ != Fault::kNone && round < 2 && !::testing::Test::HasFailure();
       ++round) {
    for (Process& process : processes_) {
      if (!process.alive) continue;
      for (size_t site = 0; site < sites_.size(); ++site) {
        if (sites_[site].processes.count(process.index) != 0) {
          process.order.push_back(static_cast<int>(site));
        }
      }
    }
    for (Site& site : sites_) {
      if (site.ragged) {
        ExtendRagged(site, false);
      } else {
        Extend(site);
      }
    }
    RunUntilQuiet();
    ResumeAll();
    RunUntilQuiet();
  }
  CheckEverything();
  CheckAccounts();
}

ReactorWorld::~ReactorWorld() {
  // Groups before their reactors.
  for (Site& site : sites_) site.groups.clear();
  for (Process& process : processes_) process.reactor.reset();
}

// ---- What goes wrong ---------------------------------------------------------------------------

void ReactorWorld::ScheduleFault() {
  const auto count = static_cast<int64_t>(processes_.size());
  culprit_ = static_cast<int>(Draw(random_, 0, count - 1));
  victim_ = static_cast<int>((culprit_ + Draw(random_, 1, count - 1)) % count);
  fault_at_step_ = Draw(random_, 0, Chance(random_, 20) ? 20 : 400);
}

bool ReactorWorld::IsLinkFault() const {
  return fault_ == Fault::kCutBoth || fault_ == Fault::kCutOne || fault_ == Fault::kBlackHole ||
         fault_ == Fault::kNeverUp || fault_ == Fault::kFailed;
}

bool ReactorWorld::Exposed(const Site& site) const {
  if (fault_ == Fault::kNone) return false;
  if (site.processes.count(culprit_) == 0) return false;
  if (fault_ == Fault::kPoison) return site.devices == sites_[poisoned_site_].devices;
  return !IsLinkFault() || site.processes.count(victim_) != 0;
}

std::shared_ptr<FakePipe> ReactorWorld::PipeOf(int from, int to) {
  std::shared_ptr<FakePipe>& pipe = pipes_[{from, to}];
  if (pipe == nullptr) pipe = std::make_shared<FakePipe>();
  return pipe;
}

void ReactorWorld::StrikeIfDue() {
  if (fault_ == Fault::kHostile && step_ >= fault_at_step_) {
    if (Chance(random_, 10)) SendGarbage();
    return;
  }
  if (struck_ || step_ < fault_at_step_) return;
  struck_ = true;
  Process& culprit = processes_[culprit_];
  switch (fault_) {
    case Fault::kCutBoth:
      PipeOf(culprit_, victim_)->broken = true;
      PipeOf(victim_, culprit_)->broken = true;
      break;
    case Fault::kCutOne:
      PipeOf(culprit_, victim_)->broken = true;
      break;
    case Fault::kBlackHole:
      for (const auto& pipe : {PipeOf(culprit_, victim_), PipeOf(victim_, culprit_)}) {
        pipe->black_hole = true;
        pipe->puts.clear();
        pipe->told.clear();
      }
      break;
    case Fault::kStop:
      culprit.running = false;
      resume_at_ = net_.now() + std::chrono::milliseconds(Draw(random_, 1, 4000));
      break;
    case Fault::kKill:
      culprit.running = culprit.alive = false;
      for (Process& other : processes_) {
        if (other.index == culprit_) continue;
        PipeOf(culprit_, other.index)->writer_gone = true;
        PipeOf(other.index, culprit_)->reader_gone = true;
        if (Chance(random_, 50)) PipeOf(culprit_, other.index)->puts.clear();
      }
      break;
    default:
      break;
  }
}

void ReactorWorld::SendGarbage() {
  const std::shared_ptr<FakePipe> pipe = PipeOf(culprit_, victim_);
  if (pipe->reader_gone) return;
  if (Chance(random_, 15)) {
    static constexpr const char* kWords[] = {
        "",       "ask",         "state",        "state x",          "poison",
        "poison", "poison zz",   "poison 1234 ", "poison 1234 lies", "poison \x01 \xff\xfe",
        "hello",  "state \xff%s"};
    pipe->told.push_back({kWords[Draw(random_, 0, std::size(kWords) - 1)], net_.now()});
    return;
  }
  FakePipe::Put put;
  put.due = net_.Due();
  NoticeFields fields;
  if (!seen_.empty() && Chance(random_, 70)) {
    fields = seen_[Draw(random_, 0, static_cast<int64_t>(seen_.size()) - 1)];
    auto* const words = reinterpret_cast<uint32_t*>(&fields);
    for (int64_t i = Draw(random_, 0, 2); i > 0; --i) {
      uint32_t& word = words[Draw(random_, 0, sizeof(fields) / 4 - 1)];
      word = Chance(random_, 50) ? word ^ (1u << Draw(random_, 0, 31))
                                 : static_cast<uint32_t>(random_());
    }
  } else {
    for (uint64_t& word : put.notice) word = random_();
    fields = Decode(put.notice);
    fields.kind = static_cast<NoticeKind>(Draw(random_, 0, 4));
    if (Chance(random_, 50)) fields.bytes %= 20000;
    if (Chance(random_, 50)) fields.offset %= kWindowBytes;
  }
  put.notice = Encode(fields);
  pipe->puts.push_back(std::move(put));
}

// ---- Running -----------------------------------------------------------------------------------

void ReactorWorld::MakeProcesses() {
  poisoned_site_ = 0;
  for (Process& process : processes_) {
    Reactor::Seams seams;
    seams.now = [this] { return net_.now(); };
    seams.timeout_s = kTimeoutS;
    seams.first_call = first_call_;
    seams.ahead_bytes = ahead_bytes_;
    seams.complete = [&process](std::vector<std::unique_ptr<Completion>> completions,
                                std::shared_ptr<const Status> status,
                                std::shared_ptr<ContinuationCost>) {
      for (auto& completion : completions) {
        process.completions.emplace_back(std::move(completion), status);
      }
    };
    process.reactor = Reactor::Create(
        process.index, process_of_device_,
        [this, &process](int peer) {
          process.reactor->Account();  // hangs if the engine's lock is held
          wanted_.push_back({process.index, peer});
        },
        seams);
  }
  if (fault_ == Fault::kPoison) {
    for (size_t s = 0; s < sites_.size(); ++s) {
      if (sites_[s].processes.count(culprit_) != 0) poisoned_site_ = static_cast<int>(s);
    }
    Process& culprit = processes_[culprit_];
    if (culprit.sites_to_open.empty()) return;
    while (!culprit.sites_to_open.empty()) OpenNext(culprit);
    const int s = poisoned_site_;
    sites_[s].groups[culprit_]->Fail(Status(
        StatusCode::kDeadlineExceeded,
        sites_[s].description + ": rank 0 of process " + std::to_string(culprit_) + " gave up"));
  }
}

void ReactorWorld::OpenNext(Process& process) {
  const int s = process.sites_to_open.front();
  process.sites_to_open.erase(process.sites_to_open.begin());
  Site& site = sites_[s];
  site.groups[process.index] = process.reactor->interprocess().Open(
      {site.devices, site.operation, site.description, site.plans.at(process.index)});
}

void ReactorWorld::Connect(int from, int to) {
  if (!connected_.insert({from, to}).second) return;
  const bool struck = (from == culprit_ && to == victim_) || (from == victim_ && to == culprit_);
  if (struck && fault_ == Fault::kNeverUp) return;
  if (struck && fault_ == Fault::kFailed) {
    if (from == culprit_) processes_[from].reactor->LinkFailed(to, "connection refused");
    return;
  }
  processes_[from].reactor->AddLink(
      to, std::make_unique<FakeLink>(net_, to, PipeOf(from, to), PipeOf(to, from), copying_));
}

void ReactorWorld::SubmitNext(Process& process) {
  if (process.next == process.order.size() || !process.sites_to_open.empty()) return;
  const int s = process.order[process.next++];
  Site& site = sites_[s];
  ProcessCall& call = *site.calls.at(process.index)[process.made[s]++];
  MemberBuffers buffers;
  for (auto& input : call.inputs) buffers.inputs.push_back(input.data());
  for (auto& output : call.outputs) buffers.outputs.push_back(output.data());
  std::vector<std::unique_ptr<Completion>> completions;
  for (size_t member = 0; member < call.outcomes.size(); ++member) {
    completions.push_back(std::make_unique<SimCompletion>(this, process.index, s, &call, member));
  }
  site.groups.at(process.index)
      ->Start(0, std::move(buffers), std::move(completions), std::make_shared<ContinuationCost>());
}

bool ReactorWorld::Act() {
  Process& process = processes_[Draw(random_, 0, static_cast<int64_t>(processes_.size()) - 1)];
  if (!process.running) return false;
  const int64_t what = Draw(random_, 0, 9);
  if (what == 0 && !process.sites_to_open.empty()) {
    OpenNext(process);
    return true;
  }
  if (what == 1 && process.next < process.order.size() && process.sites_to_open.empty()) {
    SubmitNext(process);
    return true;
  }
  if (what == 2 && !wanted_.empty()) {
    const size_t chosen = Draw(random_, 0, static_cast<int64_t>(wanted_.size()) - 1);
    const auto [from, to] = wanted_[chosen];
    wanted_.erase(wanted_.begin() + static_cast<std::ptrdiff_t>(chosen));
    Connect(from, to);
    wanted_.push_back({to, from});
    if (connected_.count({to, from}) != 0) wanted_.pop_back();
    return true;
  }
  if (what <= 4 && !process.completions.empty()) {
    auto [completion, status] = std::move(process.completions.front());
    process.completions.pop_front();
    completion->Done(*status);
    return true;
  }
  return process.reactor->Step();
}

bool ReactorWorld::SomethingLeft() const {
  if (!wanted_.empty()) return true;
  for (const Process& process : processes_) {
    if (!process.running) continue;
    if (!process.sites_to_open.empty() || process.next < process.order.size() ||
        !process.completions.empty()) {
      return true;
    }
  }
  return false;
}

void ReactorWorld::RunUntilQuiet() {
  auto last_active = net_.now();
  const auto limit = step_ + 2000000;
  int idle = 0;
  while (net_.now() - last_active < std::chrono::milliseconds(2500)) {
    ++step_;
    ASSERT_LT(step_, limit) << "it never comes to rest";
    StrikeIfDue();
    if (fault_ == Fault::kStop && struck_ && net_.now() >= resume_at_) ResumeAll();
    if (fault_ == Fault::kHostile && Chance(random_, 5)) Sniff();
    net_.Advance(microseconds(Draw(random_, 0, 30)));
    if (Act() || SomethingLeft()) {
      last_active = net_.now();
      idle = 0;
    } else if (++idle > 40) {
      net_.Advance(std::chrono::milliseconds(40));
      // Nothing pends and nothing flies: no need to wait for deadlines.
      if (idle > 120 && AllAtRest()) return;
    }
  }
}

bool ReactorWorld::AllAtRest() {
  for (Process& process : processes_) {
    if (!process.running && process.alive) return false;
    if (process.alive && process.reactor->Account().calls != 0) return false;
  }
  for (const auto& [ends, pipe] : pipes_) {
    if (pipe->reader_gone || !processes_[ends.second].alive) continue;
    if (!pipe->puts.empty() || !pipe->told.empty() || pipe->broken) return false;
  }
  return struck_ || fault_ == Fault::kNone || fault_ == Fault::kHostile;
}

void ReactorWorld::Sniff() {
  for (const auto& [ends, pipe] : pipes_) {
    if (ends.first != culprit_ && ends.second != culprit_) continue;
    for (const FakePipe::Put& put : pipe->puts) {
      if (seen_.size() < 200) seen_.push_back(Decode(put.notice));
    }
  }
}

void ReactorWorld::ResumeAll() {
  for (Process& process : processes_) process.running = process.alive;
}

// ---- Checking ----------------------------------------------------------------------------------

void ReactorWorld::CheckFirstRound() {
  for (const Site& site : sites_) {
    for (const auto& [process, calls] : site.calls) {
      if (!processes_[process].alive) continue;
      for (const auto& call : calls) {
        for (const Outcome& outcome : call->outcomes) {
          EXPECT_EQ(outcome.done, 1) << site.description << ", process " << process;
        }
      }
    }
  }
}

void ReactorWorld::CheckEverything() {
  for (const Site& site : sites_) {
    bool any_failed = false;
    for (const auto& [process, calls] : site.calls) {
      if (!processes_[process].alive) continue;
      const std::vector<int32_t> members = site.Members(process);
      for (size_t c = 0; c < calls.size(); ++c) {
        CheckCall(site, process, members, c, *calls[c]);
        const Outcome& outcome = calls[c]->outcomes[0];
        const bool refused =
            site.refused.count(c) != 0 && outcome.status.code() == StatusCode::kInvalidArgument;
        any_failed |= outcome.done > 0 && !outcome.status.ok() && !refused;
      }
    }
    if (!any_failed) continue;
    EXPECT_TRUE(Exposed(site)) << site.description << " failed for no reason";
    // By now everybody knows.
    for (const auto& [process, calls] : site.calls) {
      if (!processes_[process].alive) continue;
      const Status& last = calls.back()->outcomes[0].status;
      // A process that only sends, or only has zeros to write, waits for nobody. Over a link that
      // says nothing it may succeed forever.
      const bool may_not_know =
          fault_ == Fault::kBlackHole || fault_ == Fault::kFailed || fault_ == Fault::kNeverUp;
      if (may_not_know && calls[calls.size() - 2]->outcomes[0].status.ok()) continue;
      EXPECT_EQ(last.code(), StatusCode::kFailedPrecondition) << site.description;
      EXPECT_NE(last.message().find("failed earlier"), std::string::npos) << last.message();
    }
  }
}

void ReactorWorld::CheckCall(const Site& site, int process, const std::vector<int32_t>& members,
                             size_t c, const ProcessCall& call) {
  const std::string where =
      site.description + ", call " + std::to_string(c) + ", process " + std::to_string(process);
  for (const Outcome& outcome : call.outcomes) {
    EXPECT_EQ(outcome.done, 1) << where;
    EXPECT_EQ(outcome.status.code(), call.outcomes[0].status.code()) << where;
  }
  for (size_t i = 0; i < call.at_completion.size(); ++i) {
    EXPECT_TRUE(Equal(call.outputs[i], call.at_completion[i]))
        << where << " was written after its completion";
  }
  const Status& status = call.outcomes[0].status;
  const bool refused = site.refused.count(c) != 0;
  // A liar's words and numbers are what they are.
  const bool lied_to = fault_ == Fault::kHostile && Exposed(site);
  EXPECT_TRUE(!refused || !status.ok() || lied_to) << where << ": nobody has refused it";
  if (!status.ok()) {
    const std::string& text = status.message();
    if (refused && !Exposed(site)) {
      EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << where << ": " << text;
      const auto& other = site.calls.begin()->second[c]->outcomes[0].status;
      EXPECT_EQ(text, other.message()) << where;
      EXPECT_NE(text.find(" to rank "), std::string::npos) << where << ": " << text;
    } else {
      EXPECT_TRUE(Exposed(site)) << where << ": " << text;
    }
    EXPECT_NE(text.find(site.description), std::string::npos) << where << ": " << text;
    EXPECT_NE(text.find("rank "), std::string::npos) << where << ": " << text;
    EXPECT_NE(text.find("process "), std::string::npos) << where << ": " << text;
    return;
  }
  if (lied_to) return;
  const size_t ranks = site.devices.size();
  for (size_t v = 0; v < site.block_elements.size(); ++v) {
    for (size_t m = 0; m < members.size(); ++m) {
      EXPECT_TRUE(
          Equal(call.outputs[v * members.size() + m], site.expected[c][v * ranks + members[m]]))
          << where << ", vector " << v << " of " << site.block_elements[v] << " elements, rank "
          << members[m] << ": wrong result";
    }
  }
}

void ReactorWorld::CheckAccounts() {
  for (Process& process : processes_) {
    if (!process.alive) continue;
    Reactor::Accounts accounts = process.reactor->Account();
    EXPECT_EQ(accounts.calls, 0u);
    EXPECT_EQ(accounts.slots_kept, 0u);
    if (fault_ == Fault::kHostile) continue;
    EXPECT_EQ(accounts.early_calls, 0u);
    EXPECT_EQ(accounts.early_bytes, 0u);
    // Messages to a dead process do not come back.
    if (fault_ == Fault::kBlackHole || fault_ == Fault::kNeverUp || fault_ == Fault::kFailed) {
      continue;
    }
    EXPECT_EQ(accounts.slots_taken, 0u);
    EXPECT_EQ(accounts.waiting, 0u);
  }
}

}  // namespace jaxcoll
