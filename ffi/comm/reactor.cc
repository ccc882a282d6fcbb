#include "comm/reactor.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <thread>
#include <utility>

#include "base/environment.h"

namespace jaxcoll {
namespace {

using std::chrono::duration;
using std::chrono::microseconds;
using std::chrono::milliseconds;

// The thread looks for this long before it sleeps, yielding in between: a peer that shares the core
// gets it.
constexpr microseconds kSpin{60};
constexpr milliseconds kTick{20};
constexpr int kNoticesPerPoll = 64;
constexpr size_t kRecords = 256;
constexpr double kWarnAfterS = 10;
// Of what others say of communicators that are not open here, the newest are remembered.
constexpr size_t kEarlyPoisons = 1024;
constexpr size_t kMaxTextBytes = 8 << 10;  // of a peer's words
constexpr milliseconds kAnswerEvery{100};
// What one peer may send for calls that this process has not made. A sender of small messages does
// not wait for its receiver, so a program of broadcasts can run ahead: this much, and no more.
constexpr size_t kMaxEarlyBytes = size_t{64} << 20;
constexpr char kUnknownMessage[] = "it sent a message that its call does not have";

std::atomic<Interprocess*> the_instance{nullptr};
std::atomic<Reactor*> the_reactor{nullptr};

// FNV-1a: equal on every process, whatever its compiler.
uint64_t Hash(std::string_view text, uint64_t seed = 14695981039346656037ull) {
  for (const char c : text) seed = (seed ^ static_cast<unsigned char>(c)) * 1099511628211ull;
  return seed;
}

// Whether call `a` was made before `b`; the count of a busy call site wraps around.
bool Before(uint32_t a, uint32_t b) { return static_cast<int32_t>(a - b) < 0; }

// A peer's words go into exceptions and logs, so they are taken as text, whatever they are.
std::string Printable(std::string_view text) {
  std::string result(text.substr(0, kMaxTextBytes));
  for (char& c : result) {
    if (c < ' ' || c > '~') c = c == '\n' ? ' ' : '?';
  }
  return result;
}

std::string Seconds(double s) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.3g s", s);
  return text;
}

}  // namespace

Interprocess* Interprocess::Get() { return the_instance.load(std::memory_order_acquire); }
void Interprocess::Set(Interprocess* instance) {
  the_instance.store(instance, std::memory_order_release);
}

// A call site's group. The reactor's calls keep it alive.
class Reactor::Group {
 public:
  uint64_t communicator = 0;
  uint64_t key = 0;
  std::vector<int> process_of_rank;
  std::vector<int64_t> device_ids;
  std::shared_ptr<const std::string> description;
  std::shared_ptr<const SegmentPlan> plan;
};

namespace {

class GroupHandle final : public RemoteGroup {
 public:
  using StartFn = std::function<void(MemberBuffers, std::vector<std::unique_ptr<Completion>>,
                                     std::shared_ptr<ContinuationCost>)>;
  GroupHandle(StartFn start, std::function<void(const Status&)> fail)
      : start_(std::move(start)), fail_(std::move(fail)) {}
  void Start(MemberBuffers buffers, std::vector<std::unique_ptr<Completion>> completions,
             std::shared_ptr<ContinuationCost> cost) override {
    start_(std::move(buffers), std::move(completions), std::move(cost));
  }
  void Fail(const Status& status) override { fail_(status); }

 private:
  StartFn start_;
  std::function<void(const Status&)> fail_;
};

}  // namespace

Reactor& Reactor::Start(int process, std::unordered_map<int64_t, int> process_of_device,
                        std::function<void(int)> want) {
  auto* const reactor = new Reactor(process, std::move(process_of_device), std::move(want), {});
  the_reactor.store(reactor, std::memory_order_release);
  Interprocess::Set(reactor);
  std::thread([reactor] { reactor->Loop(); }).detach();
  return *reactor;
}

Reactor* Reactor::Get() { return the_reactor.load(std::memory_order_acquire); }

std::unique_ptr<Reactor> Reactor::Create(int process,
                                         std::unordered_map<int64_t, int> process_of_device,
                                         std::function<void(int)> want, Seams seams) {
  std::unique_ptr<Reactor> reactor(
      new Reactor(process, std::move(process_of_device), std::move(want), std::move(seams)));
  if (reactor->seams_.thread) {
    std::thread([r = reactor.get()] { r->Loop(); }).detach();
  }
  return reactor;
}

Reactor::~Reactor() {
  JAXCOLL_CHECK(!seams_.thread || stopped_.load(std::memory_order_acquire), "still running");
  {
    std::lock_guard lock(mutex_);
    CancelCalls();
    peers_.clear();
  }
  close(bell_);
}

namespace {

Reactor::Seams WithDefaults(Reactor::Seams seams) {
  if (!seams.now) seams.now = [] { return Reactor::Clock::now(); };
  if (seams.timeout_s <= 0) seams.timeout_s = TimeoutS();
  if (!seams.complete) {
    seams.complete = [](std::vector<std::unique_ptr<Completion>> completions,
                        std::shared_ptr<const Status> status,
                        std::shared_ptr<ContinuationCost> cost) {
      WorkerPool::Get().Complete(std::move(completions), std::move(status), std::move(cost));
    };
  }
  return seams;
}

}  // namespace

Reactor::Reactor(int process, std::unordered_map<int64_t, int> process_of_device,
                 std::function<void(int)> want, Seams seams)
    : process_(process),
      process_of_device_(std::move(process_of_device)),
      want_(std::move(want)),
      seams_(WithDefaults(std::move(seams))),
      bell_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  JAXCOLL_CHECK(bell_ >= 0, "eventfd");
}

std::optional<int> Reactor::ProcessOfDevice(int64_t device_id) const {
  const auto it = process_of_device_.find(device_id);
  if (it == process_of_device_.end()) return std::nullopt;
  return it->second;
}

// ---- Groups ------------------------------------------------------------------------------------

void Reactor::NextProgram(const std::string& program) {
  std::lock_guard lock(mutex_);
  ++lowered_[program];
}

Interprocess::Slot Reactor::TakeSlot(const std::string& program, const std::string& signature) {
  std::lock_guard lock(mutex_);
  Slot slot;
  slot.lowering = lowered_[program];
  std::set<int>& used = slots_in_use_[{signature, slot.lowering}];
  while (used.count(slot.number) != 0) ++slot.number;
  used.insert(slot.number);
  return slot;
}

void Reactor::ReturnSlot(const std::string& signature, const Slot& slot) {
  std::lock_guard lock(mutex_);
  const auto it = slots_in_use_.find({signature, slot.lowering});
  it->second.erase(slot.number);
  if (it->second.empty()) slots_in_use_.erase(it);
}

std::unique_ptr<RemoteGroup> Reactor::Open(GroupSpec spec) {
  auto group = std::make_shared<Group>();
  std::string members;
  for (const int64_t device : spec.device_ids) {
    members += std::to_string(device) + ',';
    group->process_of_rank.push_back(process_of_device_.at(device));
  }
  group->communicator = Hash(members);
  group->key = Hash(spec.operation, group->communicator);
  group->device_ids = std::move(spec.device_ids);
  group->description = std::make_shared<const std::string>(std::move(spec.description));
  group->plan = std::move(spec.plan);
  {
    std::lock_guard lock(mutex_);
    const auto [it, fresh] = communicators_.try_emplace(group->communicator);
    if (fresh) OpenCommunicator(it->first, it->second, group->process_of_rank);
  }
  // The thread asks for links: `want_` may wait for a lock whose holder waits for ours.
  Ring();
  return std::make_unique<GroupHandle>(
      [this, group](MemberBuffers buffers, std::vector<std::unique_ptr<Completion>> completions,
                    std::shared_ptr<ContinuationCost> cost) {
        Submit({group, std::move(buffers), std::move(completions), std::move(cost)});
      },
      [this, group](const Status& status) { Fail(*group, status); });
}

void Reactor::OpenCommunicator(uint64_t id, Communicator& communicator,
                               const std::vector<int>& process_of_rank) {
  communicator.process_of_rank = process_of_rank;
  communicator.processes.insert(process_of_rank.begin(), process_of_rank.end());
  communicator.processes.erase(process_);
  std::string lost;
  for (const int process : communicator.processes) {
    Peer& peer = PeerOf(process);
    if (peer.state() == Peer::State::kUnknown) {
      peer.SetWanted();
      std::lock_guard lock(inbox_mutex_);
      wanted_.push_back(process);
    } else if (peer.state() == Peer::State::kDown && lost.empty()) {
      lost = RanksOf(communicator, process) + " is lost: " + peer.down_reason();
    }
  }
  // The others may know nothing of it: they may still be linked to the one that is lost here.
  if (!lost.empty()) Poison(id, lost);
  for (auto it = early_poisons_.begin(); it != early_poisons_.end();) {
    if (it->communicator != id) {
      ++it;
      continue;
    }
    if (communicator.processes.count(it->process) != 0) Poison(id, it->cause, it->process);
    it = early_poisons_.erase(it);
  }
}

void Reactor::Ring() {
  const uint64_t one = 1;
  (void)!write(bell_, &one, sizeof(one));
}

void Reactor::Fail(const Group& group, const Status& status) {
  {
    std::lock_guard lock(mutex_);
    Poison(group.communicator, status.message());
  }
  Ring();
}

Peer& Reactor::PeerOf(int process) {
  std::unique_ptr<Peer>& peer = peers_[process];
  if (peer == nullptr) peer = std::make_unique<Peer>(process);
  return *peer;
}

void Reactor::AddLink(int process, std::unique_ptr<Link> link) {
  {
    std::lock_guard lock(mutex_);
    Peer& peer = PeerOf(process);
    if (peer.state() == Peer::State::kUp || peer.state() == Peer::State::kDown) return;
    Log(LogLevel::kInfo, "process %d: linked to process %d, %s", process_, process,
        link->Describe().c_str());
    if (link->remote_window_bytes() < kWindowBytes || link->window().size() < kWindowBytes) {
      PeerDown(peer, "its window is smaller than ours; are both of one version of jaxcoll?");
      return;
    }
    peer.Connect(std::move(link));
    Pump(peer, true);
    Pump(peer, false);
  }
  Ring();
}

void Reactor::LinkFailed(int process, const std::string& reason) {
  std::lock_guard lock(mutex_);
  Peer& peer = PeerOf(process);
  if (peer.state() == Peer::State::kUp || peer.state() == Peer::State::kDown) return;
  PeerDown(peer, reason);
  Ring();
}

// ---- Calls -------------------------------------------------------------------------------------

void Reactor::Submit(Submission submission) {
  {
    std::unique_lock lock(mutex_, std::try_to_lock);
    // Calls of one group keep their order: none overtakes one in the inbox.
    if (lock.owns_lock() && !inbox_full_.load(std::memory_order_acquire)) {
      const std::shared_ptr<Group> group = submission.group;
      Begin(std::move(submission));
      if (asleep_.load(std::memory_order_seq_cst) && SendsLater(*group)) Ring();
      return;
    }
  }
  bool closed = false;
  {
    std::lock_guard lock(inbox_mutex_);
    closed = inbox_closed_;
    if (!closed) {
      inbox_.push_back(std::move(submission));
      inbox_full_.store(true, std::memory_order_seq_cst);
    }
  }
  if (closed) {
    std::lock_guard lock(mutex_);
    Begin(std::move(submission));  // which fails: the process is shutting down
  } else if (asleep_.load(std::memory_order_seq_cst)) {
    Ring();
  }
}

// Whether a link has queued something that the sleeping thread does not know of.
bool Reactor::SendsLater(const Group& group) {
  bool later = false;
  for (const int process : communicators_[group.communicator].processes) {
    Link* const link = PeerOf(process).link();
    if (link == nullptr) continue;
    later |= !link->writable_fds().empty() || !link->PrepareToSleep();
  }
  return later;
}

bool Reactor::DrainInbox() {
  if (!inbox_full_.load(std::memory_order_acquire)) return false;
  std::deque<Submission> taken;
  {
    std::lock_guard lock(inbox_mutex_);
    taken.swap(inbox_);
    inbox_full_.store(false, std::memory_order_release);
  }
  for (Submission& submission : taken) Begin(std::move(submission));
  return true;
}

void Reactor::Begin(Submission submission) {
  Group& group = *submission.group;
  const CallId id{group.key,
                  next_number_.try_emplace(group.key, seams_.first_call).first->second++};
  auto call = std::make_unique<Call>();
  call->group = submission.group;
  call->id = id;
  call->completions = std::move(submission.completions);
  call->cost = std::move(submission.cost);
  call->begun = seams_.now();
  Communicator& communicator = communicators_[group.communicator];
  const auto it = calls_.emplace(id, std::move(call)).first;
  if (stopping_.load(std::memory_order_relaxed)) {
    EraseEarly(id);
    Finish(it,
           Status(StatusCode::kCancelled, *group.description + ": the process is shutting down"));
    return;
  }
  if (!communicator.cause.empty()) {
    EraseEarly(id);
    Finish(it, Status(StatusCode::kFailedPrecondition,
                      *group.description +
                          ": this communicator failed earlier and cannot be used any more; the "
                          "first cause was: " +
                          communicator.cause));
    return;
  }
  Call& begun = *it->second;
  Wire& wire = *this;
  begun.run = std::make_unique<SegmentRun>(group.plan, std::move(submission.buffers), wire);
  current_ = &begun;
  begun.run->Begin();
  current_ = nullptr;
  if (!TakeEarly(begun)) return;
  FinishIfDone(id);
}

// What peers had sent before this process made the call. False if it has failed.
bool Reactor::TakeEarly(Call& call) {
  for (const Early& e : EraseEarly(call.id)) {
    const char* wrong = SpeaksForOther(call, e.process, e.fields);
    if (wrong == nullptr) {
      current_ = &call;
      const bool known =
          e.fields.kind == NoticeKind::kReady
              ? call.run->OnReady(e.fields.message())
              : call.run->OnData(e.fields.message(), e.message.data(), e.message.size(),
                                 std::nullopt) != SegmentRun::Taken::kUnknown;
      current_ = nullptr;
      if (!known) wrong = kUnknownMessage;
    }
    if (wrong == nullptr) continue;
    const CallId id = call.id;
    PeerDown(PeerOf(e.process), wrong);
    if (calls_.count(id) == 0) return false;
  }
  return true;
}

std::vector<Reactor::Early> Reactor::EraseEarly(const CallId& id) {
  const auto it = early_.find(id);
  if (it == early_.end()) return {};
  std::vector<Early> notices = std::move(it->second);
  early_.erase(it);
  for (const Early& e : notices) early_bytes_[e.process] -= e.bytes();
  return notices;
}

const char* Reactor::SpeaksForOther(const Call& call, int process, const NoticeFields& fields) {
  const std::vector<int>& processes = call.group->process_of_rank;
  const uint32_t from = fields.kind == NoticeKind::kData ? fields.source : fields.destination;
  if (from < processes.size() && processes[from] == process) return nullptr;
  return "it spoke for a rank that is not its own";
}

void Reactor::FinishIfDone(const CallId& id) {
  const auto it = calls_.find(id);
  if (it != calls_.end() && it->second->run->done()) Finish(it, Status());
}

void Reactor::Finish(std::map<CallId, std::unique_ptr<Call>>::iterator it, const Status& status) {
  std::unique_ptr<Call> call = std::move(it->second);
  calls_.erase(it);
  Call* const outer = std::exchange(current_, call.get());
  call->run.reset();  // returns the slots it kept
  current_ = outer;
  ++finished_calls_;
  records_.push_back({call->group->description, call->id, call->begun, seams_.now(),
                      status.ok() ? "" : status.message()});
  if (records_.size() > kRecords) records_.pop_front();
  static const auto& ok = *new std::shared_ptr<const Status>(std::make_shared<const Status>());
  seams_.complete(std::move(call->completions),
                  status.ok() ? ok : std::make_shared<const Status>(status), std::move(call->cost));
}

// ---- The wire of a run -------------------------------------------------------------------------

void Reactor::SendReady(SegmentRun&, int32_t rank, const MessageId& id) {
  PeerOf(current_->group->process_of_rank[rank]).Send(About(NoticeKind::kReady, current_->id, id));
}

void Reactor::SendData(SegmentRun& run, int32_t rank, int32_t segment, int32_t op) {
  Peer& peer = PeerOf(current_->group->process_of_rank[rank]);
  const bool small = run.MessageBytes(segment, op) <= kEagerBytes;
  peer.waiting(small).push_back({current_->id, segment, op});
  Pump(peer, small);
}

void Reactor::Pump(Peer& peer, bool small) {
  auto& waiting = peer.waiting(small);
  while (peer.link() != nullptr && !waiting.empty() && peer.HasSlot(small)) {
    const Peer::Waiting next = waiting.front();
    waiting.pop_front();
    const auto it = calls_.find(next.call);
    if (it == calls_.end()) continue;  // it has failed
    SegmentRun& run = *it->second->run;
    const size_t bytes = run.MessageBytes(next.segment, next.op);
    const uint32_t offset = peer.TakeSlot(small);
    std::byte* const remote = peer.link()->remote_window();
    std::byte* const message = (remote != nullptr ? remote : peer.mirror()) + offset;
    run.Write(next.segment, next.op, message);
    NoticeFields fields = About(NoticeKind::kData, next.call,
                                {next.segment, KeyOf(run.plan().program().ops[next.op])});
    fields.offset = offset;
    fields.bytes = static_cast<uint32_t>(bytes);
    // The slot stays ours until the peer returns it, so a mirror needs no OnSent.
    peer.link()->Put({message, bytes}, offset, Encode(fields), 0);
    Call* const outer = std::exchange(current_, it->second.get());
    run.OnSent(next.segment, next.op);
    current_ = outer;
    if (outer != it->second.get()) FinishIfDone(next.call);
  }
}

bool Reactor::MayKeep(int32_t rank) {
  Peer& peer = PeerOf(current_->group->process_of_rank[rank]);
  if (!peer.MayKeep()) return false;
  peer.Kept();
  return true;
}

void Reactor::Release(int32_t rank, uint64_t handle) {
  Peer& peer = PeerOf(current_->group->process_of_rank[rank]);
  peer.Unkept();
  NoticeFields fields;
  fields.kind = NoticeKind::kCredit;
  fields.offset = static_cast<uint32_t>(handle);
  peer.Send(fields);
}

// ---- What peers say ----------------------------------------------------------------------------

void Reactor::OnNotice(int process, const Notice& notice) {
  Peer& peer = PeerOf(process);
  const NoticeFields fields = Decode(notice);
  const auto violation = [&](const char* what) { violations_.push_back(what); };
  if (!violations_.empty()) return;  // the link is about to end
  if (fields.kind == NoticeKind::kCredit) {
    if (!peer.ReturnSlot(fields.offset))
      return violation("it returned a slot that it did not hold");
    Pump(peer, fields.offset < kSmallSlots * kEagerBytes);
    return;
  }
  const bool data = fields.kind == NoticeKind::kData;
  if (!data && fields.kind != NoticeKind::kReady) return violation("it sent an unknown notice");
  const std::byte* message = nullptr;
  if (data) {
    const std::span<std::byte> window = peer.link()->window();
    if (fields.offset > window.size() || fields.bytes > window.size() - fields.offset) {
      return violation("it sent a message that lies outside its window");
    }
    message = window.data() + fields.offset;
  }
  const auto credit = [&] {
    NoticeFields back;
    back.kind = NoticeKind::kCredit;
    back.offset = fields.offset;
    peer.Send(back);
  };
  const CallId id = fields.call();
  const auto it = calls_.find(id);
  if (it == calls_.end()) {
    const auto next = next_number_.find(id.key);
    const bool over = next != next_number_.end() && Before(id.number, next->second);
    if (over) {  // it failed here
      if (data) credit();
      return;
    }
    if (data && fields.bytes > kEagerBytes) return violation("it sent what nobody asked for");
    Early early{process, fields, {}};
    size_t& held = early_bytes_[process];
    held += sizeof(Early) + (data ? fields.bytes : 0);
    if (held > kMaxEarlyBytes) {
      return violation("it is further ahead of this process than there is memory for");
    }
    if (data) {
      early.message.assign(message, message + fields.bytes);
      credit();
    }
    early_[id].push_back(std::move(early));
    return;
  }
  Call& call = *it->second;
  if (const char* wrong = SpeaksForOther(call, process, fields)) return violation(wrong);
  current_ = &call;
  bool known = true;
  if (data) {
    const SegmentRun::Taken taken =
        call.run->OnData(fields.message(), message, fields.bytes, fields.offset);
    known = taken != SegmentRun::Taken::kUnknown;
    if (taken == SegmentRun::Taken::kAtOnce) credit();
  } else {
    known = call.run->OnReady(fields.message());
  }
  current_ = nullptr;
  if (!known) return violation(kUnknownMessage);
  FinishIfDone(id);
}

// Messages: "ask", "state <text>", "poison <communicator> <cause>".
void Reactor::OnTold(int process, std::string_view message) {
  Peer& peer = PeerOf(process);
  if (!violations_.empty()) return;
  if (message == "ask") {
    // Honest peers do not ask often; answers to others must not pile up.
    if (seams_.now() - peer.answered_at < kAnswerEvery) return;
    peer.answered_at = seams_.now();
    peer.Tell("state " + State());
  } else if (message.starts_with("state ")) {
    peer.last_state = Printable(message.substr(6));
    peer.last_state_at = seams_.now();
  } else if (message.starts_with("poison ")) {
    const size_t space = message.find(' ', 7);
    if (space == std::string_view::npos || space + 1 == message.size()) {
      violations_.push_back("it said something unknown");
      return;
    }
    const uint64_t communicator =
        std::strtoull(std::string(message.substr(7, space - 7)).c_str(), nullptr, 16);
    const std::string cause = Printable(message.substr(space + 1));
    const auto it = communicators_.find(communicator);
    if (it == communicators_.end()) {
      early_poisons_.push_back({process, communicator, cause});
      if (early_poisons_.size() > kEarlyPoisons) early_poisons_.pop_front();
    } else if (it->second.processes.count(process) == 0) {
      violations_.push_back("it spoke of a communicator that it is no member of");
    } else {
      Poison(communicator, cause, process);
    }
  } else {
    violations_.push_back("it said something unknown");
  }
}

// ---- Failure -----------------------------------------------------------------------------------

std::string Reactor::RankName(const Group& group, int32_t rank) {
  const int process = group.process_of_rank[rank];
  std::string name = "rank " + std::to_string(rank) + " (device " +
                     std::to_string(group.device_ids[rank]) + ", process " +
                     std::to_string(process);
  if (process != process_) name += ", " + PeerOf(process).description();
  return name + ")";
}

// A process that was told passes it on, for the first one may not reach everybody.
void Reactor::Poison(uint64_t id, const std::string& cause, int told_by) {
  const auto it = communicators_.find(id);
  if (it == communicators_.end() || !it->second.cause.empty()) return;
  it->second.cause = cause;
  Log(LogLevel::kInfo, "process %d: a communicator failed: %s", process_, cause.c_str());
  char text[32];
  std::snprintf(text, sizeof(text), "poison %llx ", static_cast<unsigned long long>(id));
  for (const int process : it->second.processes) {
    Peer& peer = PeerOf(process);
    if (process == told_by || (told_by >= 0 && peer.state() != Peer::State::kUp)) continue;
    peer.Tell((text + cause).substr(0, kMaxTextBytes));
  }
  std::vector<CallId> failed;
  for (const auto& [call_id, call] : calls_) {
    if (call->group->communicator == id) failed.push_back(call_id);
  }
  for (const CallId& call_id : failed) {
    const auto call = calls_.find(call_id);
    const std::string& description = *call->second->group->description;
    Finish(call, Status(StatusCode::kFailedPrecondition,
                        cause.starts_with(description) ? cause : description + ": " + cause));
  }
}

void Reactor::PeerDown(Peer& peer, const std::string& reason) {
  const std::string who = "process " + std::to_string(peer.process()) + " (" + peer.description() +
                          ") is lost: " + reason;
  peer.Disconnect(who);
  Log(LogLevel::kInfo, "process %d: %s", process_, who.c_str());
  std::vector<uint64_t> poisoned;
  for (const auto& [id, communicator] : communicators_) {
    if (communicator.processes.count(peer.process()) != 0) poisoned.push_back(id);
  }
  for (const uint64_t id : poisoned) {
    Poison(id, RanksOf(communicators_.at(id), peer.process()) + " is lost: " + who);
  }
  for (auto it = early_.begin(); it != early_.end();) {
    std::erase_if(it->second, [&](const Early& e) { return e.process == peer.process(); });
    it = it->second.empty() ? early_.erase(it) : std::next(it);
  }
  early_bytes_.erase(peer.process());
}

std::string Reactor::RanksOf(const Communicator& communicator, int process) const {
  std::string ranks;
  for (size_t rank = 0; rank < communicator.process_of_rank.size(); ++rank) {
    if (communicator.process_of_rank[rank] != process) continue;
    ranks += (ranks.empty() ? "rank " : ", rank ") + std::to_string(rank);
  }
  return ranks;
}

std::string Reactor::State() {
  std::string text;
  int count = 0;
  for (const auto& [id, call] : calls_) {
    if (++count > 8) continue;
    text += (text.empty() ? "waits in " : "; and in ") + *call->group->description + " (call " +
            std::to_string(id.number) + ", since " + Seconds(SecondsSince(call->begun)) + ")";
  }
  if (count > 8) text += "; and in " + std::to_string(count - 8) + " more";
  if (text.empty()) {
    text = "is in no collective";
    if (!records_.empty()) {
      text += "; its last one, " + *records_.back().description + ", ended " +
              Seconds(SecondsSince(records_.back().ended)) + " ago";
    }
  }
  return text;
}

std::string Reactor::DeadlineMessage(const Call& call) {
  std::string text = *call.group->description + ": waited " + Seconds(SecondsSince(call.begun)) +
                     " (call " + std::to_string(call.id.number) + " of process " +
                     std::to_string(process_) + "); missing: ";
  std::set<int> processes;
  bool first = true;
  for (const int32_t rank : call.run->WaitingFor()) {
    text += (first ? "" : ", ") + RankName(*call.group, rank);
    first = false;
    processes.insert(call.group->process_of_rank[rank]);
  }
  const std::string same = "waits in " + *call.group->description + " (";
  for (const int process : communicators_.at(call.group->communicator).processes) {
    const Peer& peer = PeerOf(process);
    const bool answers = peer.state() == Peer::State::kUp && peer.last_state_at > call.begun;
    if (processes.count(process) == 0 && answers && peer.last_state.starts_with(same)) continue;
    text += "; process " + std::to_string(process) + " ";
    if (peer.state() != Peer::State::kUp) {
      text += "has not connected";
    } else if (peer.last_state_at > call.begun) {
      text += peer.last_state;
    } else {
      text += "does not answer: it is stopped, or cut off";
    }
  }
  return text;
}

void Reactor::CheckDeadlines() {
  const Clock::time_point now = seams_.now();
  if (now - checked_at_ < kTick) return;
  checked_at_ = now;
  const double ask_after_s = std::min(seams_.timeout_s / 2, kWarnAfterS / 2);
  std::vector<CallId> late;
  for (const auto& [id, call] : calls_) {
    const double waited_s = duration<double>(now - call->begun).count();
    if (waited_s < ask_after_s) continue;
    if (!call->asked) {
      call->asked = true;
      // All of them: whom one waits for may itself wait for the one that is at fault.
      for (const int process : communicators_.at(call->group->communicator).processes) {
        Peer& peer = PeerOf(process);
        if (now - peer.asked_at < milliseconds(500)) continue;
        peer.asked_at = now;
        peer.Tell("ask");
      }
    }
    if (waited_s > kWarnAfterS && !call->warned && waited_s < seams_.timeout_s) {
      call->warned = true;
      Log(LogLevel::kWarning, "%s", DeadlineMessage(*call).c_str());
    }
    if (waited_s > seams_.timeout_s) late.push_back(id);
  }
  for (const CallId& id : late) {
    const auto it = calls_.find(id);
    if (it == calls_.end()) continue;  // failed with another one
    const std::string message = DeadlineMessage(*it->second) +
                                ". Every process must make the same calls in the same order; or "
                                "raise JAXCOLL_TIMEOUT_S";
    Poison(it->second->group->communicator, message);
  }
}

// ---- The thread --------------------------------------------------------------------------------

bool Reactor::PollLinks() {
  bool active = false;
  std::vector<std::pair<int, std::string>> ended;
  for (const auto& [process, peer] : peers_) {
    if (peer->link() == nullptr) continue;
    const StatusOr<bool> polled = peer->link()->Poll(*this, kNoticesPerPoll);
    if (!polled.ok()) {
      ended.emplace_back(process, polled.status().message());
    } else if (!violations_.empty()) {
      ended.emplace_back(process, violations_.front());
    } else {
      active |= *polled;
    }
    violations_.clear();
  }
  for (const auto& [process, reason] : ended) {
    PeerDown(PeerOf(process), reason);
    active = true;
  }
  return active;
}

void Reactor::Loop() {
  Clock::time_point last_active = seams_.now();
  std::vector<pollfd> fds;
  while (true) {
    const bool active = Step();
    if (stopping_.load(std::memory_order_acquire)) {
      std::lock_guard lock(mutex_);
      bool queued = false;
      for (const auto& [process, peer] : peers_) {
        queued |= peer->link() != nullptr && !peer->link()->writable_fds().empty();
      }
      if (!queued) break;
    }
    const Clock::time_point now = seams_.now();
    if (active) last_active = now;
    if (now - last_active < kSpin) {
      if (!active) std::this_thread::yield();
      continue;
    }
    asleep_.store(true, std::memory_order_seq_cst);
    fds.assign(1, {bell_, POLLIN, 0});
    bool quiet = !inbox_full_.load(std::memory_order_seq_cst);
    bool waiting = false;
    {
      std::lock_guard lock(mutex_);
      waiting = !calls_.empty();
      for (const auto& [process, peer] : peers_) {
        if (peer->link() == nullptr) continue;
        quiet &= peer->link()->PrepareToSleep();
        for (const int fd : peer->link()->readable_fds()) {
          if (fd != bell_) fds.push_back({fd, POLLIN, 0});
        }
        for (const int fd : peer->link()->writable_fds()) fds.push_back({fd, POLLOUT, 0});
      }
    }
    if (quiet) {
      poll(fds.data(), fds.size(), waiting ? static_cast<int>(kTick.count()) : 500);
    }
    asleep_.store(false, std::memory_order_relaxed);
    uint64_t rung;
    (void)!read(bell_, &rung, sizeof(rung));
    std::lock_guard lock(mutex_);
    for (const auto& [process, peer] : peers_) {
      if (peer->link() != nullptr) peer->link()->Awake();
    }
    last_active = seams_.now();
  }
  {
    std::lock_guard lock(mutex_);
    {
      std::lock_guard inbox_lock(inbox_mutex_);
      inbox_closed_ = true;
    }
    DrainInbox();
    // Peers learn at once that this process makes no more calls.
    for (const auto& [process, peer] : peers_) {
      if (peer->link() != nullptr) peer->Disconnect("this process is shutting down");
    }
  }
  stopped_.store(true, std::memory_order_release);  // nothing of this object is touched after this
}

bool Reactor::Step() {
  bool active = false;
  {
    std::lock_guard lock(mutex_);
    active |= DrainInbox();
    active |= PollLinks();
    CheckDeadlines();
  }
  std::vector<int> wanted;
  {
    std::lock_guard lock(inbox_mutex_);
    wanted.swap(wanted_);
  }
  for (const int process : wanted) want_(process);
  return active || !wanted.empty();
}

Reactor::Accounts Reactor::Account() {
  std::lock_guard lock(mutex_);
  Accounts accounts;
  accounts.calls = calls_.size();
  accounts.early_calls = early_.size();
  for (const auto& [process, bytes] : early_bytes_) accounts.early_bytes += bytes;
  for (const auto& [process, peer] : peers_) {
    accounts.slots_taken += peer->slots_taken();
    accounts.slots_kept += peer->kept();
    accounts.waiting += peer->waiting(true).size() + peer->waiting(false).size();
  }
  return accounts;
}

void Reactor::CancelCalls() {
  while (!calls_.empty()) {
    const auto it = calls_.begin();
    Finish(it, Status(StatusCode::kCancelled,
                      *it->second->group->description + ": the process is shutting down"));
  }
}

void Reactor::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_.store(true, std::memory_order_release);
    // Who waits for this process need not wait for its end.
    std::set<uint64_t> pending;
    for (const auto& [id, call] : calls_) pending.insert(call->group->communicator);
    for (const uint64_t id : pending) {
      Poison(id, RanksOf(communicators_.at(id), process_) + " (process " +
                     std::to_string(process_) + ") is shutting down");
    }
    CancelCalls();
  }
  Ring();
  const Clock::time_point end = Clock::now() + std::chrono::seconds(3);
  while (!stopped_.load(std::memory_order_acquire) && Clock::now() < end) {
    std::this_thread::sleep_for(milliseconds(1));
  }
}

std::string Reactor::Dump() {
  std::lock_guard lock(mutex_);
  std::string text = "jaxcoll, process " + std::to_string(process_) + ": " +
                     std::to_string(finished_calls_) + " calls between processes have ended, " +
                     std::to_string(calls_.size()) + " are pending\n";
  for (const auto& [process, peer] : peers_) {
    text += "  process " + std::to_string(process) + ": ";
    switch (peer->state()) {
      case Peer::State::kUnknown:
      case Peer::State::kWanted:
        text += "not connected yet";
        break;
      case Peer::State::kUp:
        text += peer->description();
        break;
      case Peer::State::kDown:
        text += peer->down_reason();
        break;
    }
    text += '\n';
  }
  for (const auto& [id, communicator] : communicators_) {
    if (!communicator.cause.empty()) text += "  failed communicator: " + communicator.cause + '\n';
  }
  for (const auto& [id, call] : calls_) text += "  pending: " + DeadlineMessage(*call) + '\n';
  for (auto it = records_.rbegin(); it != records_.rend(); ++it) {
    text += "  " + Seconds(SecondsSince(it->ended)) + " ago: " + *it->description + ", call " +
            std::to_string(it->id.number) + ", took " +
            Seconds(duration<double>(it->ended - it->begun).count()) +
            (it->failure.empty() ? "" : ", FAILED: " + it->failure) + '\n';
  }
  return text;
}

}  // namespace jaxcoll
