#include "gpu/proxy/proxy.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "base/log.h"

namespace jaxcoll::cuda {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

// A kernel cannot wake a thread, so the thread looks: this often at first, and less when nothing
// has happened for a while. Reckoned, not measured: 100 us are a few percent of a core.
constexpr microseconds kLookSoon{100};
constexpr microseconds kLookLate{1000};
constexpr milliseconds kSoon{100};
constexpr milliseconds kLookForGroups{20};
// The most messages of others that are remembered for regions and groups not open here.
constexpr size_t kEarlyOpens = 1 << 16;
constexpr size_t kEarlyFailures = 1024;
constexpr int64_t kUntold = -1;  // how often a slot is used

// Flags are shared with kernels, or with the threads that play them.
uint64_t Acquire(const void* at) {
  auto* const word = static_cast<uint64_t*>(const_cast<void*>(at));
  return std::atomic_ref<uint64_t>(*word).load(std::memory_order_acquire);
}
void Release(void* at, uint64_t value) {
  std::atomic_ref<uint64_t>(*static_cast<uint64_t*>(at)).store(value, std::memory_order_release);
}
// `freed` and `done` say "up to"; nobody else writes to an inbox.
void RaiseTo(unsigned char* at, uint64_t tag) {
  uint64_t now;
  std::memcpy(&now, at, sizeof(now));
  if (TagBefore(now, tag)) Release(at, tag);
}

}  // namespace

// The meaning of a parcel.
struct HostProxy::Label {
  Kind kind;
  uint64_t region;
  uint64_t word;     // kOpen: the digest; kArrived: the fingerprint
  uint32_t message;  // kDone: the rank that ended; its `slice` is the rank that learns of it
  uint32_t epoch;
  uint32_t slice;
  // kArrived: the first of its bytes in the message; sized by flags: how often the slot is used in
  // this launch; kFreed: which of the message's departures.
  uint32_t part;
  uint32_t launch;  // of the routes' calls

  ParcelLabel Packed() const {
    return {region, word, {message, epoch, slice, part, launch}, static_cast<uint8_t>(kind)};
  }
  static Label From(const ParcelLabel& label) {
    const auto& [message, epoch, slice, part, launch] = label.numbers;
    return {
        static_cast<Kind>(label.kind), label.key, label.word, message, epoch, slice, part, launch};
  }
};

// ---- Groups and regions ------------------------------------------------------------------------

void HostProxy::OpenGroup(HostGroupSpec spec) {
  std::lock_guard lock(mutex_);
  const auto [it, fresh] = groups_.try_emplace(spec.id);
  JAXCOLL_CHECK(fresh, "group %llx is open", static_cast<unsigned long long>(spec.id));
  HostGroup& group = it->second;
  group.spec = std::move(spec);
  group.processes.insert(group.spec.process_of_rank.begin(), group.spec.process_of_rank.end());
  group.processes.erase(process_);
  group.unwanted = group.processes;
  for (auto early = early_failures_.begin(); early != early_failures_.end();) {
    if (early->group != group.spec.id) {
      ++early;
      continue;
    }
    if (group.processes.count(early->process) != 0) Fail(group, early->cause, early->process);
    early = early_failures_.erase(early);
  }
}

void HostProxy::OpenRegion(RegionSpec spec) {
  std::lock_guard lock(mutex_);
  HostGroup& group = groups_.at(spec.group);
  const HostGroupSpec& members = group.spec;
  const HostRoutes& routes = *spec.routes;
  const int32_t ranks = routes.world_size();
  JAXCOLL_CHECK(ranks == static_cast<int32_t>(members.process_of_rank.size()), "%d ranks", ranks);
  JAXCOLL_CHECK(!routes.sized_by_flags() ||
                    routes.calls()[0].stride_bytes <= static_cast<int64_t>(kSlotBytes),
                "a message is one parcel");
  JAXCOLL_CHECK(group_of_region_.emplace(spec.key, spec.group).second, "the region is open");
  Region& region = group.regions[spec.key];
  region.spec = std::move(spec);
  std::map<int, std::vector<int32_t>> ranks_of;  // processes with ranks of other hosts
  for (int32_t rank = 0; rank < ranks; ++rank) {
    if (members.process_of_rank[rank] != process_) continue;
    const auto remote = [&](int32_t peer) {
      return members.host_of_rank[peer] != members.host_of_rank[rank];
    };
    ranks_of.clear();
    for (int32_t peer = 0; peer < ranks; ++peer) {
      if (remote(peer)) ranks_of[members.process_of_rank[peer]].push_back(peer);
    }
    Sender sender{.rank = rank,
                  .doorbell = region.spec.doorbells[rank],
                  .epoch = region.spec.epoch,
                  .cursors = {},
                  .done_sent = std::vector<uint32_t>(ranks, region.spec.epoch)};
    int32_t strands = 0;
    for (const TableCall& call : routes.calls()) strands = std::max(strands, call.strands);
    for (const auto& [process, peers] : ranks_of) {
      region.processes.insert(process);
      Link::Loan* const loan = LoanOf(group, region.spec, rank, process);
      for (int32_t worker = 0; worker < routes.workers(); ++worker) {
        std::vector<HostRoutes::Signal> signals;
        for (const HostRoutes::Signal& signal : routes.Signals(rank, worker)) {
          const HostRoutes::HostMessage& message = routes.messages()[signal.message];
          const int32_t to = signal.arrives() ? message.destination : message.source;
          if (members.process_of_rank[to] == process) signals.push_back(signal);
        }
        for (int32_t strand = 0; strand < strands && !signals.empty(); ++strand) {
          sender.cursors.push_back({process, strand, signals, {}, loan});
        }
      }
      sender.cursors.push_back({process, 0, {}, peers, nullptr});
    }
    region.senders.push_back(std::move(sender));
  }
  region.untold = region.processes;
  for (const int process : region.processes) {
    const auto early = early_opens_.extract({region.spec.key, process});
    if (early.empty()) continue;
    region.opened.insert(process);
    if (early.mapped() != routes.DigestBetween(members.process_of_rank, process_, process)) {
      Fail(group, OtherRoutes(group, region, process));
    }
  }
}

std::string HostProxy::OtherRoutes(const HostGroup& group, const Region& region, int process) {
  return region.spec.description + ": " + RanksOf(group, process) +
         " split the same call differently: JAXCOLL_CUDA_* must be equal in all processes, and "
         "jaxcoll of one version";
}

HostProxy::Region* HostProxy::FindRegion(uint64_t key, HostGroup** group) {
  const auto found = group_of_region_.find(key);
  if (found == group_of_region_.end()) return nullptr;
  *group = &groups_.at(found->second);
  return &(*group)->regions.at(key);
}

// ---- What kernels have written -----------------------------------------------------------------

bool HostProxy::Step(Carrier& carrier) {
  std::lock_guard lock(mutex_);
  bool active = false;
  for (auto& [id, group] : groups_) {
    active |= Tell(group, carrier);
    for (auto& [key, region] : group.regions) {
      if (group.cause) break;
      for (const int process : std::exchange(region.untold, {})) {
        const uint64_t digest =
            region.spec.routes->DigestBetween(group.spec.process_of_rank, process_, process);
        const Label label{kOpen, key, digest, 0, 0, 0, 0, 0};
        carrier.Send(process, label.Packed());
        active = true;
      }
      for (Sender& sender : region.senders) active |= StepSender(group, region, sender, carrier);
      for (const Sender& sender : region.senders) {
        const std::string who = group.left.empty() ? "" : WhoMisses(group, region, sender);
        if (!who.empty()) Fail(group, who);
      }
    }
    active |= Tell(group, carrier);
  }
  if (active) active_at_ = steady_clock::now();
  return active;
}

// Asks for links, and passes on why the group has failed.
bool HostProxy::Tell(HostGroup& group, Carrier& carrier) {
  bool active = false;
  for (const int process : std::exchange(group.unwanted, {})) {
    const std::string lost = carrier.Want(process);
    if (!lost.empty()) Fail(group, RanksOf(group, process) + " is lost: " + lost);
    active = true;
  }
  for (const int process : std::exchange(group.untold, {})) {
    char text[32];
    std::snprintf(text, sizeof(text), "%llx ", static_cast<unsigned long long>(group.spec.id));
    carrier.Tell(process, text + *group.cause);
    active = true;
  }
  return active;
}

void HostProxy::Begin(const Region& region, Sender& sender) {
  const TableCall& call = region.spec.routes->calls()[sender.launch];
  sender.active = true;
  sender.cursors_left = 0;
  for (Cursor& cursor : sender.cursors) {
    cursor.slice = cursor.strand;
    cursor.next = 0;
    cursor.sent = 0;
    // Slices strand, strand + strands, ...
    const int64_t slices =
        (int64_t{call.slice_count} - cursor.strand + call.strands - 1) / call.strands;
    cursor.uses.assign(cursor.signals.size(),
                       region.spec.routes->sized_by_flags() ? kUntold : slices);
    cursor.ended =
        cursor.done.empty() && (cursor.strand >= call.strands || cursor.slice >= call.slice_count);
    if (!cursor.ended) ++sender.cursors_left;
  }
}

bool HostProxy::StepSender(const HostGroup& group, Region& region, Sender& sender,
                           Carrier& carrier) {
  bool active = false;
  if (!sender.active) {
    if (static_cast<uint32_t>(Acquire(sender.doorbell)) == sender.epoch) return false;
    Begin(region, sender);
    active = true;
  }
  for (Cursor& cursor : sender.cursors) {
    if (cursor.ended || region.opened.count(cursor.process) == 0) continue;
    if (group.left.count(cursor.process) != 0) {
      cursor.ended = true;  // nobody is there to hear it
    } else {
      active |= cursor.done.empty() ? Advance(region, sender, cursor, carrier)
                                    : AdvanceDone(region, sender, cursor, carrier);
    }
    if (cursor.ended) --sender.cursors_left;
  }
  if (sender.cursors_left > 0) return active;
  ++sender.epoch;
  sender.launch = (sender.launch + 1) % region.spec.routes->calls().size();
  sender.active = false;
  return true;
}

// The value of the message's first flag of this launch, in the outbox of its destination, or in the
// inbox if that is a rank here.
int64_t HostProxy::UsesTold(const Region& region, const HostRoutes::HostMessage& message,
                            const SlotUse& use, uint32_t epoch) {
  const unsigned char* const flag = region.spec.memory[message.destination] +
                                    region.spec.routes->FlagAt(message, message.arrivals[0], use);
  const uint64_t raised = Acquire(flag + offsetof(Flag, value));
  if (TagBefore(raised, TagOf(epoch, 1))) return kUntold;
  // An inbox may be a launch ahead: the sender has ended this one and needs no notification.
  if (raised >> 32 != epoch) return 0;
  return static_cast<int64_t>(Acquire(flag + offsetof(Flag, uses)));
}

// Sends what has been raised of a block, as far as there is room.
bool HostProxy::Advance(Region& region, Sender& sender, Cursor& cursor, Carrier& carrier) {
  const HostRoutes& routes = *region.spec.routes;
  const TableCall& call = routes.calls()[sender.launch];
  const uint32_t epoch = sender.epoch + 1;
  bool active = false;
  while (!cursor.ended) {
    const SlotUse use{&call, cursor.slice};
    const HostRoutes::Signal signal = cursor.signals[cursor.next];
    const HostRoutes::HostMessage& message = routes.messages()[signal.message];
    int64_t& uses = cursor.uses[cursor.next];
    if (uses == kUntold) uses = UsesTold(region, message, use, epoch);
    if (uses == kUntold) return active;
    // A use so late that nobody waits for its slot is not said to be freed; see interpreter.h.
    if (use.count() + (signal.arrives() ? 0 : call.depth) < uses) {
      const int32_t to = signal.arrives() ? message.destination : message.source;
      const unsigned char* const outbox = region.spec.memory[to];
      const auto flag = [&](int32_t index) { return outbox + routes.FlagAt(message, index, use); };
      const uint64_t tag = TagOf(epoch, static_cast<uint64_t>(use.count()) + 1);
      const auto raised = [&](int32_t index) {
        return !TagBefore(Acquire(flag(index) + offsetof(Flag, value)), tag);
      };
      if (signal.arrives() ? !std::all_of(message.arrivals.begin(), message.arrivals.end(), raised)
                           : !raised(message.departures[signal.departure])) {
        return active;
      }
      Label label{signal.arrives() ? kArrived : kFreed,
                  region.spec.key,
                  0,
                  message.id,
                  epoch,
                  static_cast<uint32_t>(cursor.slice),
                  static_cast<uint32_t>(signal.arrives() ? 0 : signal.departure),
                  static_cast<uint32_t>(sender.launch)};
      int64_t bytes = signal.arrives() ? routes.Bytes(message, use) : 0;
      if (signal.arrives()) {
        label.word = Acquire(flag(message.arrivals[0]) + offsetof(Flag, fingerprint));
      }
      if (signal.arrives() && routes.sized_by_flags()) {
        label.part = static_cast<uint32_t>(uses);
        if (use.count() + 1 == uses) {
          bytes =
              static_cast<int64_t>(Acquire(flag(message.arrivals[0]) + offsetof(Flag, last_bytes)));
        }
      }
      if (bytes == 0) carrier.Send(cursor.process, label.Packed());
      while (cursor.sent < bytes) {
        if (!routes.sized_by_flags()) label.part = static_cast<uint32_t>(cursor.sent);
        const int64_t went =
            SendPart(region, sender, cursor, use, message, label, bytes - cursor.sent, carrier);
        if (went == 0) return active;
        cursor.sent += went;
        active = true;
      }
      active = true;
    }
    cursor.sent = 0;
    if (++cursor.next < cursor.signals.size()) continue;
    cursor.next = 0;
    cursor.slice += call.strands;
    cursor.ended = use.count() + 1 >= *std::max_element(cursor.uses.begin(), cursor.uses.end());
  }
  return true;
}

int64_t HostProxy::SendPart(const Region& region, const Sender& sender, const Cursor& cursor,
                            const SlotUse& use, const HostRoutes::HostMessage& message,
                            const Label& label, int64_t left, Carrier& carrier) {
  const HostRoutes& routes = *region.spec.routes;
  const int64_t most = std::min(left, static_cast<int64_t>(kSlotBytes));
  if (cursor.loan == nullptr) {
    const unsigned char* const outbox = region.spec.memory[message.destination];
    const bool went = carrier.Send(
        cursor.process, label.Packed(), static_cast<size_t>(most), [&](std::byte* to_slot) {
          routes.Gather(message, use, outbox, cursor.sent, {to_slot, static_cast<size_t>(most)});
        });
    return went ? most : 0;
  }
  // Nobody closes the gaps that slots have: a parcel ends at one.
  const HostRoutes::Stretch stretch = routes.StretchAt(message, use, cursor.sent, most);
  const unsigned char* const slots = region.spec.slots[sender.rank][message.destination];
  const bool went = carrier.Send(
      cursor.process, label.Packed(), *cursor.loan,
      std::as_bytes(std::span(slots + stretch.at, static_cast<size_t>(stretch.bytes))));
  return went ? stretch.bytes : 0;
}

bool HostProxy::AdvanceDone(Region& region, Sender& sender, Cursor& cursor, Carrier& carrier) {
  const uint32_t epoch = sender.epoch + 1;
  bool active = false;
  for (; cursor.next < cursor.done.size(); ++cursor.next) {
    const int32_t to = cursor.done[cursor.next];
    const uint64_t raised = Acquire(region.spec.memory[to] + HostRoutes::DoneAt(sender.rank));
    if (TagBefore(raised, TagOf(epoch, 0))) return active;
    const Label label{kDone, region.spec.key,           0, static_cast<uint32_t>(sender.rank),
                      epoch, static_cast<uint32_t>(to), 0, 0};
    carrier.Send(cursor.process, label.Packed());
    sender.done_sent[to] = epoch;
    active = true;
  }
  cursor.ended = true;
  return active;
}

// ---- What comes for kernels --------------------------------------------------------------------

const char* HostProxy::OnParcel(int process, const ParcelLabel& packed,
                                std::span<const std::byte> bytes) {
  std::lock_guard lock(mutex_);
  active_at_ = steady_clock::now();
  const Label label = Label::From(packed);
  HostGroup* group = nullptr;
  Region* const region = FindRegion(label.region, &group);
  if (region == nullptr) {
    if (label.kind != kOpen) return nullptr;  // of a group that was closed
    if (early_opens_.size() >= kEarlyOpens)
      return "it has too many pending calls that this process has not made";
    early_opens_[{label.region, process}] = label.word;
    return nullptr;
  }
  if (group->cause) return nullptr;
  if (region->processes.count(process) == 0)
    return "it sent a message for a call it does not take part in";
  const HostRoutes& routes = *region->spec.routes;
  switch (label.kind) {
    case kOpen:
      region->opened.insert(process);
      if (label.word != routes.DigestBetween(group->spec.process_of_rank, process_, process)) {
        Fail(*group, OtherRoutes(*group, *region, process));
      }
      return nullptr;
    case kDone:
      return OnDone(*group, *region, process, label);
    case kArrived:
    case kFreed:
      if (routes.Find(label.message) == nullptr || label.launch >= routes.calls().size() ||
          (!routes.sized_by_flags() &&
           label.slice >= static_cast<uint32_t>(routes.calls()[label.launch].slice_count)) ||
          label.slice > static_cast<uint32_t>(std::numeric_limits<int32_t>::max())) {
        return "it named a message that is not part of its call";
      }
      return label.kind == kArrived ? OnArrived(*group, *region, process, label, bytes)
                                    : OnFreed(*group, *region, process, label);
  }
  return "it sent an unknown parcel";
}

const char* HostProxy::OnArrived(HostGroup& group, Region& region, int process, const Label& label,
                                 std::span<const std::byte> bytes) {
  const HostRoutes& routes = *region.spec.routes;
  const HostRoutes::HostMessage& message = *routes.Find(label.message);
  const std::vector<int>& processes = group.spec.process_of_rank;
  if (processes[message.source] != process || processes[message.destination] != process_) {
    return "it sent a message for a rank it does not own";
  }
  const SlotUse use{&routes.calls()[label.launch], static_cast<int32_t>(label.slice)};
  const auto sender = std::find_if(region.senders.begin(), region.senders.end(),
                                   [&](const Sender& s) { return s.rank == message.destination; });
  // It waits for `done` before it writes for the next launch, and that launch waits for all of it.
  if (label.epoch != sender->done_sent[message.source] + 1) return "it is at another launch";
  Landing& landing = region.landings[{label.message, use.strand()}];
  const int32_t depth = use.call->depth;
  if (landing.missing.empty() || landing.epoch != label.epoch) {
    landing = {label.epoch, 0, std::vector<int64_t>(depth, -1)};
  }
  const auto size = static_cast<int64_t>(bytes.size());
  const bool sized = routes.sized_by_flags();
  const int64_t slot_bytes = routes.Bytes(message, use);
  // Sized by flags it is one parcel, and fills the slot unless this is the last use of it.
  const int64_t last_use = int64_t{label.part} - 1;
  const int64_t total =
      sized && use.count() == last_use ? std::clamp(size, int64_t{1}, slot_bytes) : slot_bytes;
  const int64_t first = sized ? 0 : int64_t{label.part};
  if (use.count() < landing.next || use.count() >= landing.next + depth ||
      (sized && (use.count() > last_use || size != total)) || first + size > total ||
      (size == 0 && total > 0)) {
    return "it sent a message before its slot was free";
  }
  int64_t& missing = landing.missing[use.count() % depth];
  if (missing < 0) {
    missing = total;
  } else if (missing == 0 || missing < size) {
    return "it sent a message twice";
  }
  unsigned char* const inbox = region.spec.memory[message.destination];
  routes.Scatter(message, use, inbox, first, bytes);
  missing -= size;
  for (SlotUse next{use.call, landing.next * use.call->strands + use.strand()};
       landing.missing[landing.next % depth] == 0; next.slice += use.call->strands) {
    const bool first = landing.next == 0;
    landing.missing[landing.next % depth] = -1;
    ++landing.next;
    for (const int32_t index : message.arrivals) {
      unsigned char* const flag = inbox + routes.FlagAt(message, index, next);
      if (first) Release(flag + offsetof(Flag, fingerprint), label.word);
      if (first && sized) Release(flag + offsetof(Flag, uses), label.part);
      Release(flag + offsetof(Flag, value),
              TagOf(label.epoch, static_cast<uint64_t>(landing.next)));
    }
  }
  return nullptr;
}

const char* HostProxy::OnFreed(HostGroup& group, Region& region, int process, const Label& label) {
  const HostRoutes& routes = *region.spec.routes;
  const HostRoutes::HostMessage& message = *routes.Find(label.message);
  const std::vector<int>& processes = group.spec.process_of_rank;
  if (processes[message.destination] != process || processes[message.source] != process_) {
    return "it sent a message for a rank it does not own";
  }
  if (label.part >= message.departures.size()) return "it freed a slot that no call uses";
  const SlotUse use{&routes.calls()[label.launch], static_cast<int32_t>(label.slice)};
  const int32_t flag = message.departures[label.part];
  RaiseTo(region.spec.memory[message.source] + routes.FlagAt(message, flag, use),
          TagOf(label.epoch, static_cast<uint64_t>(use.count()) + 1));
  return nullptr;
}

const char* HostProxy::OnDone(HostGroup& group, Region& region, int process, const Label& label) {
  const std::vector<int>& processes = group.spec.process_of_rank;
  const uint32_t from = label.message, to = label.slice;
  if (from >= processes.size() || to >= processes.size() || processes[from] != process ||
      processes[to] != process_) {
    return "it sent a message for a rank it does not own";
  }
  RaiseTo(region.spec.memory[to] + HostRoutes::DoneAt(static_cast<int32_t>(from)),
          TagOf(label.epoch, 0));
  return nullptr;
}

// ---- Failure -----------------------------------------------------------------------------------

void HostProxy::Fail(uint64_t id, const std::string& cause) {
  std::lock_guard lock(mutex_);
  const auto found = groups_.find(id);
  if (found != groups_.end()) Fail(found->second, cause);
}

// A process that learns of it passes it on, for the first one may not reach everybody.
void HostProxy::Fail(HostGroup& group, const std::string& cause, int told_by) {
  if (group.cause) return;
  group.cause = cause;
  Log(LogLevel::kInfo, "a communicator of GPUs failed: %s", cause.c_str());
  group.untold = group.processes;
  group.untold.erase(told_by);
  std::atomic_ref<uint32_t>(*group.spec.abort).store(1, std::memory_order_release);
}

std::optional<std::string> HostProxy::Cause(uint64_t id) {
  std::lock_guard lock(mutex_);
  const auto found = groups_.find(id);
  return found == groups_.end() ? std::nullopt : found->second.cause;
}

// "<group> <cause>"
const char* HostProxy::OnTold(int process, std::string_view message) {
  std::lock_guard lock(mutex_);
  const size_t space = message.find(' ');
  if (space == message.npos || space + 1 == message.size())
    return "it sent a message of an unknown type";
  const uint64_t id = std::strtoull(std::string(message.substr(0, space)).c_str(), nullptr, 16);
  const std::string cause(message.substr(space + 1));
  const auto found = groups_.find(id);
  if (found == groups_.end()) {
    early_failures_.push_back({process, id, cause});
    if (early_failures_.size() > kEarlyFailures) early_failures_.pop_front();
    return nullptr;
  }
  if (found->second.processes.count(process) == 0)
    return "it reported the state of GPUs it does not own";
  Fail(found->second, cause, process);
  return nullptr;
}

void HostProxy::OnLost(int process, const std::string& why) {
  std::lock_guard lock(mutex_);
  for (auto& [id, group] : groups_) {
    if (group.processes.count(process) != 0) {
      Fail(group, RanksOf(group, process) + " is lost: " + why);
    }
  }
}

void HostProxy::OnLeft(int process, const std::string& why) {
  std::lock_guard lock(mutex_);
  for (auto& [id, group] : groups_) {
    if (group.processes.count(process) != 0) group.left.emplace(process, why);
  }
}

// A launch that has begun here and has not ended at a rank that has died never will.
std::string HostProxy::WhoMisses(const HostGroup& group, const Region& region,
                                 const Sender& sender) {
  const auto epoch = static_cast<uint32_t>(Acquire(sender.doorbell));
  for (size_t rank = 0; rank < group.spec.process_of_rank.size(); ++rank) {
    const int process = group.spec.process_of_rank[rank];
    const auto left = group.left.find(process);
    if (left == group.left.end() || region.processes.count(process) == 0) continue;
    const uint64_t done =
        Acquire(region.spec.memory[sender.rank] + HostRoutes::DoneAt(static_cast<int32_t>(rank)));
    if (epoch != region.spec.epoch && TagBefore(done, TagOf(epoch, 0))) {
      return region.spec.description + ": waits for " + group.spec.names[rank] + ", but " +
             left->second;
    }
  }
  return "";
}

std::string HostProxy::RanksOf(const HostGroup& group, int process) {
  std::string ranks;
  for (size_t rank = 0; rank < group.spec.process_of_rank.size(); ++rank) {
    if (group.spec.process_of_rank[rank] != process) continue;
    ranks += (ranks.empty() ? "" : ", ") + group.spec.names[rank];
  }
  return ranks;
}

microseconds HostProxy::MaySleep() {
  std::lock_guard lock(mutex_);
  if (groups_.empty()) return kLookForGroups;
  return steady_clock::now() - active_at_ < kSoon ? kLookSoon : kLookLate;
}

bool HostProxy::Busy() {
  std::lock_guard lock(mutex_);
  for (const auto& [id, group] : groups_) {
    for (const auto& [key, region] : group.regions) {
      for (const Sender& sender : region.senders) {
        const auto epoch = static_cast<uint32_t>(Acquire(sender.doorbell));
        if (!group.cause && epoch != sender.epoch) return true;
      }
    }
  }
  return false;
}

void HostProxy::OnStop() {
  std::lock_guard lock(mutex_);
  for (auto& [id, group] : groups_) {
    bool under_way = false;
    for (const auto& [key, region] : group.regions) {
      for (const Sender& sender : region.senders) {
        under_way |= static_cast<uint32_t>(Acquire(sender.doorbell)) != sender.epoch;
      }
    }
    if (group.cause) continue;
    Fail(group, RanksOf(group, process_) + " is shutting down");
    // Peers that do not wait for this process need not fail with it.
    if (!under_way) group.untold.clear();
  }
}

std::string HostProxy::Dump() {
  std::lock_guard lock(mutex_);
  std::string text;
  for (const auto& [id, group] : groups_) {
    if (group.cause) text += "  failed communicator of GPUs: " + *group.cause + '\n';
    for (const auto& [key, region] : group.regions) {
      for (const Sender& sender : region.senders) {
        if (!sender.active || group.cause) continue;
        text += "  pending on " + group.spec.names[sender.rank] + ": " + region.spec.description +
                ", launch " + std::to_string(sender.epoch + 1);
        std::string late;
        for (const int process : region.processes) {
          if (region.opened.count(process) == 0) {
            late += (late.empty() ? "; have not reached it: " : ", ") + RanksOf(group, process);
          }
        }
        text += late + '\n';
      }
    }
  }
  return text;
}

}  // namespace jaxcoll::cuda
