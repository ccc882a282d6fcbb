#include "comm/reactor.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <ctime>
#include <system_error>
#include <thread>
#include <utility>

#include "base/environment.h"
#include "base/interruption.h"
#include "base/log.h"
#include "comm/reactor_internal.h"
#include "comm/words.h"

namespace jaxcoll {
namespace {

using std::chrono::duration;
using std::chrono::microseconds;
using std::chrono::milliseconds;

// The thread looks for this long before it sleeps, yielding in between: a peer that shares the core
// gets it.
constexpr microseconds kReactorSpin{60};
constexpr int kNoticesPerPoll = 64;
constexpr double kDrainS = 2;
std::atomic<Interprocess*> the_instance{nullptr};
std::atomic<Reactor*> the_reactor{nullptr};

}  // namespace

Interprocess* Interprocess::Get() { return the_instance.load(std::memory_order_acquire); }
void Interprocess::Set(Interprocess* instance) {
  the_instance.store(instance, std::memory_order_release);
}

Reactor& Reactor::Start(int process, std::unordered_map<int64_t, int> process_of_device,
                        std::function<void(int)> want) {
  Seams seams;
  seams.lend = true;
  auto* const reactor =
      new Reactor(process, std::move(process_of_device), std::move(want), std::move(seams));
  std::thread thread;
  try {
    thread = std::thread([reactor] { reactor->Loop(); });
  } catch (...) {  // no more threads: nothing has been started
    delete reactor;
    throw;
  }
  the_reactor.store(reactor, std::memory_order_release);
  Interprocess::Set(&reactor->for_call_sites_);
  reactor->HandleForks();
  thread.detach();
  return *reactor;
}

void Reactor::HandleForks() {
  pthread_atfork(
      [] {
        Get()->mutex_.lock();
        Get()->inbox_mutex_.lock();
      },
      [] {
        Get()->inbox_mutex_.unlock();
        Get()->mutex_.unlock();
      },
      [] {
        Reactor& reactor = *Get();
        for (const auto& [process, peer] : reactor.peers_) peer->ForgetLinks();
        reactor.stopping_ = reactor.stopped_ = reactor.inbox_closed_ = true;  // it has no thread
        reactor.inbox_mutex_.unlock();
        reactor.mutex_.unlock();
      });
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
  if (guest_ != nullptr) guest_->OnInvited(nullptr);
  close(bell_);
}

namespace {

Reactor::Seams WithDefaults(Reactor::Seams seams) {
  if (!seams.now) seams.now = [] { return Reactor::Clock::now(); };
  if (seams.timeout_s <= 0) seams.timeout_s = TimeoutS();
  // A peer that does not answer for so long is stopped or cut off; one that answers is only late.
  // By default that is sooner than JAX's coordination service ends processes that have lost a peer.
  if (seams.silence_s <= 0) {
    seams.silence_s = std::max(seams.timeout_s / 5, std::min(seams.timeout_s, 10.0));
  }
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
  // Not a programmer's error, and only bindings call this: they make it an exception of Python's.
  if (bell_ < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
}

void Reactor::Ring() {
  const uint64_t one = 1;
  (void)!write(bell_, &one, sizeof(one));
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
    Log(LogLevel::kInfo, "linked to process %d, %s", process, link->Describe().c_str());
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

void Reactor::Refuse(const std::string& reason) {
  std::lock_guard lock(mutex_);
  std::vector<uint64_t> shared;
  for (const auto& [id, communicator] : communicators_) {
    if (!communicator.processes.empty()) shared.push_back(id);
  }
  for (const uint64_t id : shared) Poison(id, reason);  // notifies others while there are links
  for (const auto& [process, peer] : peers_) {
    if (peer->state() == Peer::State::kDown) continue;
    // Also those that share no communicator with this process now: they may later.
    if (peer->link() != nullptr) peer->Tell("end " + reason);
    PeerDown(*peer, reason);
  }
  Ring();
}

// ---- The thread --------------------------------------------------------------------------------

bool Reactor::PollLinks() {
  bool active = false;
  for (const auto& [process, peer] : peers_) {
    if (peer->link() != nullptr) active |= PollLink(*peer);
  }
  return active;
}

bool Reactor::PollLink(Peer& peer) {
  Incoming incoming(*this, peer);
  const StatusOr<bool> polled = peer.link()->Poll(incoming, kNoticesPerPoll);
  // Broken or altered data are an error of the link even if the peer has said goodbye.
  if (!polled.ok() && peer.left && polled.status().code() == StatusCode::kUnavailable) {
    PeerLeft(peer);
  } else if (!polled.ok()) {
    PeerDown(peer, peer.end.empty() ? polled.status().message() : peer.end);
  } else if (!incoming.violation().empty()) {
    PeerDown(peer, incoming.violation());
  } else {
    return *polled;
  }
  return true;
}

void Reactor::Loop() {
  Clock::time_point last_active = seams_.now();
  std::vector<pollfd> fds;
  while (true) {
    bool lent = lenders_.load(std::memory_order_seq_cst) > 0;
    const bool active = !lent && Step();
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
    if (!lent && now - last_active < kReactorSpin) {
      if (!active) std::this_thread::yield();
      continue;
    }
    asleep_.store(true, std::memory_order_seq_cst);
    fds.assign(1, {bell_, POLLIN, 0});
    bool quiet = !inbox_full_.load(std::memory_order_seq_cst);
    bool waiting = false;
    microseconds guest_sleeps = microseconds::max();
    {
      std::lock_guard lock(mutex_);
      waiting = !calls_.empty();
      if (guest_ != nullptr) guest_sleeps = guest_->MaySleep();
      // From here on a handler that leaves sees that this thread is asleep, and rings.
      lent = lenders_.load(std::memory_order_relaxed) > 0;
      armed_ = true;
      for (const auto& [process, peer] : peers_) {
        if (peer->link() == nullptr) continue;
        quiet &= peer->link()->PrepareToSleep();
        for (const int fd : peer->link()->readable_fds()) {
          if (fd != bell_) fds.push_back({fd, POLLIN, 0});
        }
        for (const int fd : peer->link()->writable_fds()) fds.push_back({fd, POLLOUT, 0});
      }
    }
    // Data that arrive while a handler works here are the handler's to take.
    if (quiet || lent) {
      const microseconds longest = lent ? microseconds(1000) : waiting ? kTick : milliseconds(500);
      const auto s = std::chrono::nanoseconds(std::min(longest, guest_sleeps)).count();
      const timespec time{.tv_sec = s / 1'000'000'000, .tv_nsec = s % 1'000'000'000};
      ppoll(fds.data(), fds.size(), &time, nullptr);
    }
    asleep_.store(false, std::memory_order_relaxed);
    uint64_t rung;
    (void)!read(bell_, &rung, sizeof(rung));
    std::lock_guard lock(mutex_);
    for (const auto& [process, peer] : peers_) {
      if (peer->link() != nullptr) peer->link()->Awake(true);
    }
    armed_ = false;
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
    active |= StepGuest();
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
  accounts.communicators = communicators_.size();
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

void Reactor::Stop(const std::string& words) {
  // Messages that kernels have handed over are sent; a kernel that still waits for others is not
  // waited for.
  const auto drained = Clock::now() + duration<double>(std::min(seams_.timeout_s, kDrainS));
  while (GuestBusy() && Clock::now() < drained) std::this_thread::sleep_for(milliseconds(1));
  {
    std::lock_guard lock(mutex_);
    if (guest_ != nullptr) {
      guest_->OnStop();
      guest_->Step(guest_carrier_);
    }
    stopping_.store(true, std::memory_order_release);
    // Fail the peers' pending calls now, not when this process exits.
    std::set<uint64_t> pending;
    for (const auto& [id, call] : calls_) pending.insert(call->group->communicator);
    for (const uint64_t id : pending) {
      Poison(id, RanksOf(communicators_.at(id), process_) + " (process " +
                     std::to_string(process_) + ")" +
                     (Interruption::Get().count() > 0 ? " was interrupted (Ctrl-C) and"
                      : words.empty()                 ? ""
                                                      : " " + words + " and") +
                     " is shutting down");
    }
    CancelCalls();
    for (const auto& [process, peer] : peers_) {
      if (peer->link() == nullptr) continue;
      if (!words.empty()) peer->Tell("end " + words + " and has ended");
      peer->Tell("bye");
    }
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
                     std::to_string(recorder_.count()) + " calls between processes have ended, " +
                     std::to_string(calls_.size()) + " are pending, " +
                     std::to_string(communicators_.size()) + " communicators are open\n";
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
  if (guest_ != nullptr) text += guest_->Dump();
  text += recorder_.Lines(seams_.now());
  return text;
}

}  // namespace jaxcoll
