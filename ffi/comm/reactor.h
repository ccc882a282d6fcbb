// The engine between processes: one thread that moves the calls of all groups forward.
//
// Matching. Processes meet by CallId: what the call is (device ids, operation, shapes), which of
// several equal instructions of an executable makes it (its number, counted in the order in which
// they are instantiated, which is the same everywhere), and the count of such calls, which outlives
// the instruction: a recompiled program goes on where the last one stopped. Nothing depends on how
// often a program is compiled, on when an executable dies or on the order in which calls arrive:
// all of that differs between processes.
//
// Mismatches. Equal programs share their calls' names, so their launches must come in the same
// order everywhere. Two launches of one that are in flight at once come from two threads, and which
// of them a peer means is unknown: they fail. Members that wait in different calls for each other
// tell each other so within a second, and each logs how the calls differ (reactor_mismatch.cc).
//
// Failure. Members of a communicator (an ordered set of devices) share its fate: when a call on it
// fails, or a process of it is gone, every call that is pending on it or made later fails with the
// first cause, here and, by a message, everywhere else. Peers write only to windows, never to the
// buffers of a call, so nothing has to be revoked before a call may fail.
//
// Thread rule: one mutex. The thread holds it while it works; a handler takes it to start a call on
// the spot if it is free, and leaves the call in the inbox if not. A handler that has started one
// may lend its thread for a moment, see Lend.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/stopped_time.h"
#include "call/flight_recorder.h"
#include "call/guest.h"
#include "call/interprocess.h"
#include "call/snapshot.h"
#include "comm/difference.h"
#include "comm/listing.h"
#include "comm/notice.h"
#include "comm/peer.h"
#include "engine/slices/run.h"
#include "transport/link.h"

namespace jaxcoll {

class Reactor final {
 public:
  using Clock = std::chrono::steady_clock;

  // Once per process. `want(peer)` asks for a link; it returns at once, and AddLink or LinkFailed
  // follows. It is called on the reactor's thread without any lock. Never destroyed.
  static Reactor& Start(int process, std::unordered_map<int64_t, int> process_of_device,
                        std::function<void(int)> want);
  static Reactor* Get();

  // Small messages are sent before their receiver waits for them. While a peer has put aside more
  // than this of ours, for calls that it has yet to make, we ask it before we send the next.
  static constexpr int64_t kAheadBytes = int64_t{16} << 20;

  // The functions and limits that tests replace.
  struct Seams {
    std::function<Clock::time_point()> now;  // Clock::now
    double timeout_s = 0;                    // JAXCOLL_TIMEOUT_S
    double silence_s = 0;                    // see SilenceS
    // WorkerPool::Complete. Called with mutex_ held: it must not run the completions.
    std::function<void(std::vector<std::unique_ptr<Completion>>, std::shared_ptr<const Status>,
                       std::shared_ptr<ContinuationCost>)>
        complete;
    uint32_t first_call = 0;  // number of a call site's first call
    int64_t ahead_bytes = kAheadBytes;
    bool thread = false;  // else Step is called instead
    bool lend = false;    // whether handlers lend their threads
  };
  // For tests: any number in one process. Destroyed after its groups and after its thread, if any.
  static std::unique_ptr<Reactor> Create(int process,
                                         std::unordered_map<int64_t, int> process_of_device,
                                         std::function<void(int)> want, Seams seams);
  ~Reactor();
  // One round of the thread's work between two looks at the clock; returns whether there was
  // anything to do.
  bool Step();
  // The counts of what this process holds; all zero when nothing is under way and nobody has died.
  struct Accounts {
    size_t calls = 0;
    size_t early_calls = 0;  // that peers have made and this process has not
    size_t early_bytes = 0;
    size_t slots_taken = 0;  // of peers' windows
    size_t slots_kept = 0;   // of own windows
    size_t waiting = 0;      // messages without a slot
    size_t communicators = 0;
    friend bool operator==(const Accounts&, const Accounts&) = default;
  };
  Accounts Account();

  int bell() const { return bell_; }  // eventfd that wakes the thread
  void AddLink(int peer, std::unique_ptr<Link> link);
  void LinkFailed(int peer, const std::string& reason);
  // This process will take part in nothing any more: its links end, and calls over them fail.
  void Refuse(const std::string& reason);

  // The interface that call sites use.
  Interprocess& interprocess() { return for_call_sites_; }
  // The calling thread has compiled or loaded an executable, or begins to.
  void EndBuild();
  // For the words that say where programs differ: whether that of `program` is missing here, and
  // here it is.
  bool WantsListing(const std::string& program);
  void AddListing(const std::string& program, Listing listing);

  // This process's recent calls and its peers' states, for people.
  std::string Dump();
  ReactorSnapshot TakeSnapshot();
  // The lines of a program that AddListing has brought; empty where it is unknown.
  std::vector<std::string> LinesOf(const std::string& program);
  // From now on `fd`, an eventfd, is written to when calls have failed, and when a peer that waits
  // asks what this process is doing. The answer may have what SetPlace says, e.g. "it is in Python
  // at train.py:31": Python alone can tell, and the reactor must not wait for it.
  void SetWatcher(int fd) { watcher_.store(fd, std::memory_order_release); }
  void SetPlace(std::string place);
  // Fails what is pending, sends what is queued (a little while) and ends the thread.
  // `words`: how it came to that, e.g. "has raised ValueError"; may be empty.
  void Stop(const std::string& words = "");

  class Group;

 private:
  // A handler's call that was over before the handler returned. Guarded by mutex_.
  struct Lender {
    bool done = false;
    std::vector<std::unique_ptr<Completion>> completions;
    std::shared_ptr<const Status> status;
  };
  // How call sites reach it (reactor_groups.cc). Takes mutex_.
  class ForCallSites final : public Interprocess {
   public:
    explicit ForCallSites(Reactor& reactor) : reactor_(reactor) {}
    int process() const override { return reactor_.process_; }
    std::optional<int> ProcessOfDevice(int64_t device_id) const override;
    InstructionNumber TakeNumber(const std::string& signature) override;
    void ReturnNumber(const std::string& signature, const InstructionNumber& number) override;
    std::unique_ptr<RemoteGroup> Open(GroupSpec spec) override;
    void Invite(Guest* guest) override;
    void FailBegunBefore(Clock::time_point time, bool moving, const std::string& reason) override;

   private:
    Reactor& reactor_;
  };
  // Takes what one look at a peer's link brings (reactor_incoming.cc). mutex_ held.
  class Incoming final : public LinkSink {
   public:
    Incoming(Reactor& reactor, Peer& peer) : reactor_(reactor), peer_(peer) {}
    void OnNotice(int process, const Notice& notice) override;
    void OnTold(int process, std::string_view message) override;
    void OnSent(int process, uint64_t token) override;
    // The first fault by which the peer has broken the protocol; empty: none. Nothing that comes
    // after one is looked at, since the link is about to end.
    const std::string& violation() const { return violation_; }

   private:
    void OnPoison(std::string_view words);
    Reactor& reactor_;
    Peer& peer_;
    std::string violation_;
  };
  // How the run of one call reaches other processes (reactor_wire.cc). mutex_ held.
  struct Call;
  class CallWire final : public Wire {
   public:
    CallWire(Reactor& reactor, const Call& call) : reactor_(reactor), call_(call) {}
    void SendReady(Run& run, int32_t rank, const MessageId& id) override;
    void SendData(Run& run, int32_t rank, int32_t slice, int32_t op) override;
    bool MayKeep(int32_t rank) override;
    void Release(int32_t rank, uint64_t handle) override;
    ScratchPool& scratch() override { return reactor_.scratch_; }

   private:
    Peer& PeerOf(int32_t rank);
    Reactor& reactor_;
    const Call& call_;
  };
  // How the guest reaches them (reactor_guest.cc). mutex_ held, which Use takes.
  class GuestCarrier final : public Carrier, public CarrierAccess {
   public:
    explicit GuestCarrier(Reactor& reactor) : reactor_(reactor) {}
    std::string Want(int process) override;
    void Send(int process, const ParcelLabel& label) override;
    bool Send(int process, const ParcelLabel& label, size_t bytes,
              const std::function<void(std::byte*)>& write) override;
    void Tell(int process, std::string_view message) override;
    std::optional<bool> TakesDmabuf(int process) override;
    StatusOr<std::unique_ptr<Link::Loan>> Lend(int process, int fd,
                                               std::span<const std::byte> memory) override;
    bool Send(int process, const ParcelLabel& label, Link::Loan& loan,
              std::span<const std::byte> bytes) override;
    void Use(const std::function<void(Carrier&)>& use) override;

   private:
    // The notice of a parcel that has a slot now; nothing if there is none for it.
    static std::optional<NoticeFields> SlotFor(Peer& peer, const ParcelLabel& label, size_t bytes);
    Reactor& reactor_;
  };
  struct Call {
    explicit Call(Reactor& reactor) : wire(reactor, *this) {}
    CallWire wire;
    std::shared_ptr<Group> group;
    CallId id;
    Lender* lender = nullptr;  // while a handler works at it
    int unsent = 0;            // puts whose source is a buffer of this call
    // By process and array; null: that link does not take it.
    std::map<std::pair<int, const std::byte*>, std::unique_ptr<Link::Loan>> loans;
    std::unique_ptr<Run> run;
    bool in_run = false;  // a function of the run is being called; its caller ends the call
    std::vector<std::unique_ptr<Completion>> completions;
    std::shared_ptr<ContinuationCost> cost;
    Clock::time_point begun;
    uint64_t moves = 0;  // messages of it that came or went
    uint64_t moves_seen = 0;
    Clock::time_point moved_at;  // when CheckDeadlines last saw a new one
    bool warned = false;
    int64_t run_id = 0;
    std::string mismatch;  // how it differs from what a peer waits in, once that is known
  };
  struct Submission {
    std::shared_ptr<Group> group;
    int64_t run_id;
    MemberBuffers buffers;
    std::vector<std::unique_ptr<Completion>> completions;
    std::shared_ptr<ContinuationCost> cost;
    Lender* lender = nullptr;
  };
  struct Early {
    int process;
    NoticeFields fields;
    std::vector<std::byte> message;
    size_t bytes() const { return sizeof(Early) + message.size(); }
  };
  struct Communicator {
    int groups = 0;  // open ones; without any it is forgotten, unless it is poisoned
    std::vector<int> process_of_rank;
    std::set<int> processes;  // others
    std::string cause;        // not empty: poisoned
  };
  // A peer's message for a communicator that this process has not opened yet.
  struct EarlyPoison {
    int process;
    uint64_t communicator;
    std::string cause;
  };
  friend class Group;

  Reactor(int process, std::unordered_map<int64_t, int> process_of_device,
          std::function<void(int)> want, Seams seams);
  // A process that is forked off must not hold the links open when this one dies.
  void HandleForks();
  void Loop();
  void Ring();
  void Submit(Submission submission);
  void Fail(const Group& group, const Status& status);

  void RingWatcher();

  // All below: mutex_ held.
  PendingCall Describe(const Call& call);
  bool DrainInbox();
  CallId Begin(Submission submission);
  bool MayLend(Group& group, size_t completions);
  void Lend(std::unique_lock<std::mutex>& lock, Group& group, const CallId& id, Lender& lender);
  bool TakeEarly(Call& call);
  std::vector<Early> EraseEarly(const CallId& id);
  void Close(const Group& group);  // takes mutex_
  Communicator& CommunicatorOf(const Group& group);
  bool SendsLater(const Group& group);
  // Null, or what is wrong.
  static const char* SpeaksForOther(const Call& call, int process, const NoticeFields& fields);
  void Finish(std::map<CallId, std::unique_ptr<Call>>::iterator it, const Status& status);
  void FinishIfDone(const CallId& id);
  void CancelCalls();
  bool PollLinks();
  bool PollLink(Peer& peer);
  void CheckDeadlines();
  void DiscountStoppedTime(Clock::time_point now);
  void AskAll(const Call& call, Clock::time_point now);
  const Peer* SilentMember(const Call& call, Clock::time_point now);
  void Ask(Peer& peer, Clock::time_point now, std::chrono::duration<double> every);

  // reactor_mismatch.cc
  WaitingCall Waiting(const Call& call);
  std::string CallsWaitingFor(int process);
  void TakeWaitingCalls(Peer& peer, std::string_view lines);
  // Whether it is certain that the call will never be made by a peer.
  bool FindMismatch(Call& call, Clock::time_point now);
  const WaitingCall* OtherCall(const Call& call, const Peer& peer);
  const Comparison* CompareWith(Peer& peer, const WaitingCall& mine, const WaitingCall& theirs,
                                Clock::time_point now);
  void OnAnswer(Peer& peer, std::string_view answer);
  // Tells all members but `told_by`, who said so.
  void Poison(uint64_t communicator, const std::string& cause, int told_by = -1);
  std::string RanksOf(const Communicator& communicator, int process) const;
  void PeerDown(Peer& peer, const std::string& reason);
  void PeerLeft(Peer& peer);
  Peer& PeerOf(int process);
  void Pump(Peer& peer, bool small);
  void Sent(std::map<CallId, std::unique_ptr<Call>>::iterator it, int32_t slice, int32_t op);
  static Link::Loan* LoanFor(Call& call, Peer& peer, std::span<const std::byte> array);
  void Detach(Call& call);
  std::string State();
  std::string DeadlineMessage(const Call& call);
  std::string RankName(const Group& group, int32_t rank);
  double SecondsSince(Clock::time_point from) const {
    return std::chrono::duration<double>(seams_.now() - from).count();
  }

  // The guest.
  bool StepGuest();
  void AskForLink(Peer& peer);
  bool GuestBusy();  // takes mutex_

  const int process_;
  const std::unordered_map<int64_t, int> process_of_device_;
  const std::function<void(int)> want_;
  const Seams seams_;
  const int bell_;

  std::mutex inbox_mutex_;
  std::deque<Submission> inbox_;  // guarded by inbox_mutex_
  bool inbox_closed_ = false;     // guarded by inbox_mutex_: the thread has ended
  std::vector<int> wanted_;       // guarded by inbox_mutex_: links to ask for
  std::atomic<bool> inbox_full_{false};
  std::atomic<bool> asleep_{false};
  std::atomic<int> lenders_{0};  // handlers that do the thread's work: it keeps out of their way
  std::atomic<bool> stopping_{false};
  std::atomic<bool> stopped_{false};

  std::mutex mutex_;
  ScratchPool scratch_;
  std::map<int, std::unique_ptr<Peer>> peers_;
  std::map<std::thread::id, uint64_t> builds_;  // by the thread that is at it
  uint64_t next_build_ = 1;
  std::map<std::pair<std::string, uint64_t>, std::set<int>> numbers_in_use_;  // signature, build
  Listings listings_;
  std::map<uint64_t, uint32_t> next_number_;  // CallId::key -> its next call
  std::map<CallId, std::unique_ptr<Call>> calls_;
  std::map<CallId, std::vector<Early>> early_;  // for calls that this process has not made yet
  std::map<int, size_t> early_bytes_;           // of early_, by process
  std::map<uint64_t, Communicator> communicators_;
  std::deque<EarlyPoison> early_poisons_;
  FlightRecorder recorder_;
  uint64_t next_token_ = 1;
  bool armed_ = false;  // links may wake the thread
  Clock::time_point checked_at_;
  StoppedTime stopped_time_;
  bool some_left_ = false;          // some peer has left in good order
  std::deque<FailedCalls> failed_;  // the last ones
  std::string place_;               // see SetPlace
  Clock::time_point placed_at_;
  std::atomic<int> watcher_{-1};
  Guest* guest_ = nullptr;
  GuestCarrier guest_carrier_{*this};
  ForCallSites for_call_sites_{*this};
};

}  // namespace jaxcoll
