// Transfers the data that a GPU's kernels write for ranks on other hosts, over the links between
// processes.
//
// Memory. For each region (device_table.h) a process has host memory that the GPU maps: an outbox
// for each rank of another host, which all local ranks share, and an inbox for each local rank,
// which all ranks of other hosts share. Both are laid out like the region of their rank, so no two
// messages and no two flags overlap. Kernels write to outboxes and read inboxes; the proxy reads
// outboxes and writes inboxes. No CUDA call is needed.
//
// Device memory. Where the link to a process can send from it (Lend), the slots of outboxes for
// that process's ranks are in the sending rank's device instead, one piece for each of its peers,
// with the layout of an outbox; flags stay in host memory. Only a NIC reads these slots, never a
// CPU. Incoming messages still land in a window in host memory and are copied to the inbox.
//
//     kernel of rank a             proxy              proxy               kernel of rank b
//     slot, then flag  -> outbox of b  -> link ->  inbox of b: slot, then flag  ->  reads
//     may overwrite it <- inbox of a   <- link <-  outbox of a: `freed`, `done` <-  has read it
//
// Sending. The flags that a block raises, and their order, are known in advance (routes.h).
// For each block and peer process the proxy has a cursor: the next flag that will be raised. A
// launch first writes its epoch to a doorbell; the proxy polls the cursors of a rank whose doorbell
// is ahead, one flag each. So flags serve as descriptors, and a replayed graph needs no call. Where
// sizes are data, the first flag of each message gives the number of uses of its slot in this
// launch and the size of the last use, and the parcels carry both to the peer: a cursor skips uses
// that do not exist.
//
// The rules of overwriting:
//   outbox slot    by the kernel, when the receiver's `freed`, or `done` of the launch before, has
//                  come to its inbox. The receiver had the whole message then, so the proxy here,
//                  or a NIC, had read all of it; and no link repeats what has been delivered. (A
//                  NIC whose acknowledgement was lost may read the slot again, and send newer bytes
//                  under old sequence numbers: the receiver's NIC drops them, InfiniBand's C9-105.)
//   outbox flag    by the kernel, with a later use. For arrived and freed flags, the proxy is never
//                  a launch behind at one peer: the peer ends a launch only when all that is
//                  raised for it has come. `done` may be skipped: a later one says more.
//   inbox slot     by the proxy, with a message of this rank's next launch for the sender, which
//                  was told `done`; or of a slice whose slot it was told is `freed`.
//   inbox flag     by the proxy. Arrived flags are raised in the order of their slices, when all
//                  bytes of a message are there: parcels overtake each other. `freed` and `done`
//                  say "up to", so one that was overtaken is dropped.
//   slot of a link held from Send until the receiving proxy has copied it, which it does at once.
// This last rule, and the limit of `depth` slices for a kernel's flags, are the only flow control.
//
// The order of a slot in device memory and its flag. A kernel's stores go before the release of the
// flag at system scope (access.h), for all who acquire it; the proxy does, and then rings the NIC,
// which reads through the GPU's L2, where the stores are. A NIC is not a thread in PTX's memory
// model, and CUDA's guide to GPUDirect RDMA (synchronization and memory ordering) promises an order
// by its own calls only, above all for what comes to a running kernel: that is why nothing does
// here. Sending in this way relies on the same as NCCL: fence.acq_rel.sys, a counter in host
// memory, and a proxy that posts sends from device memory (prims_simple.h, net.cc). Not tried on a
// GPU.
//
// First, each process announces to the others of a region's group that it has the region, with the
// digest of its routes; no data is sent to a process before its announcement. A digest that differs
// is an error of the group.
//
// A failure affects the whole group: all regions of a communicator. Only the first cause counts,
// wherever it is found: a link that ends, a process that ended though it is needed, a digest, a
// kernel's own cause (Fail), a peer's word. It is stored, `abort` is raised for the kernels, which
// trap, and every other process of the group is notified. Later messages are dropped. Fingerprints
// travel with the messages and are compared by the kernels, as are epochs; so are deadlines: a
// stopped process that goes on before them does no harm, and after them finds its group failed.
//
// Thread rule: Guest's functions as guest.h says; the others from any thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "call/guest.h"
#include "gpu/proxy/routes.h"

namespace jaxcoll::cuda {

class HostProxy final : public Guest {
 public:
  explicit HostProxy(int process) : process_(process) {}
  HostProxy(const HostProxy&) = delete;
  HostProxy& operator=(const HostProxy&) = delete;

  // A communicator's group. All but `abort` is equal in all its processes.
  struct HostGroupSpec {
    uint64_t id = 0;
    std::vector<int> process_of_rank;
    std::vector<int> host_of_rank;
    std::vector<std::string> names;  // of ranks, for people
    uint32_t* abort = nullptr;       // kernels read it
  };
  void OpenGroup(HostGroupSpec spec);
  // Nothing of the group is touched any more.
  void CloseGroup(uint64_t id);

  struct RegionSpec {
    uint64_t group = 0;
    uint64_t key = 0;         // equal in all processes, and no other region's
    std::string description;  // of the call, for people
    std::shared_ptr<const HostRoutes> routes;
    // By rank: of a local rank its inbox, of one on another host its outbox. Cleared.
    std::vector<unsigned char*> memory;
    std::vector<const uint64_t*> doorbells;  // by rank; of local ones
    // By local rank and rank on another host: where the first has the slots for the second, in
    // memory that was lent to the second's process; null, or empty: in `memory`.
    std::vector<std::vector<unsigned char*>> slots;
    uint32_t epoch = 0;  // launches that have ended
  };
  // Its group is open.
  void OpenRegion(RegionSpec spec);

  // The subset of these processes that have a link that takes dma-bufs. Waits until each has one,
  // or will have none, or the group has failed, but no longer than this.
  std::set<int> TakersOf(uint64_t group, const std::set<int>& processes, double timeout_s);
  // Lends all of a dma-buf to the link to a process until the group is closed; then no NIC reads
  // it any more. The descriptor may be closed. An error says why it cannot be done.
  Status Lend(uint64_t group, int process, int fd, std::span<const std::byte> memory);

  // For all ranks of a group, here and elsewhere. Only the first cause is kept.
  void Fail(uint64_t group, const std::string& cause);
  std::optional<std::string> Cause(uint64_t group);

  void OnInvited(CarrierAccess* access) override;
  bool Step(Carrier& carrier) override;
  const char* OnParcel(int process, const ParcelLabel& label,
                       std::span<const std::byte> bytes) override;
  const char* OnTold(int process, std::string_view message) override;
  void OnLost(int process, const std::string& why) override;
  void OnLeft(int process, const std::string& why) override;
  std::chrono::microseconds MaySleep() override;
  bool Busy() override;
  void OnStop() override;
  std::string Dump() override;

 private:
  enum Kind : uint8_t { kOpen = 1, kArrived, kFreed, kDone };
  struct Label;
  // The flags of one block, or the `done` of a rank, for ranks of one process.
  struct Cursor {
    int process;
    int32_t strand;
    std::vector<HostRoutes::Signal> signals;  // of each slice
    std::vector<int32_t> done;                // instead: ranks
    Link::Loan* loan;                         // of the memory that has the slots, if it is lent
    // State of this launch.
    int32_t slice = 0;
    size_t next = 0;                 // of signals or done
    std::vector<int64_t> uses = {};  // by signal: of its message's slot, on this strand
    int64_t sent = 0;                // bytes of the next message that went
    bool ended = false;              // all of the launch has been sent
  };
  // A local rank.
  struct Sender {
    int32_t rank;
    const uint64_t* doorbell;
    uint32_t epoch;           // launches of which all has been sent
    size_t launch = 0;        // of the routes' calls: the one after these
    bool active = false;      // that one has begun
    size_t cursors_left = 0;  // that have not ended
    std::vector<Cursor> cursors;
    std::vector<uint32_t> done_sent;  // by rank
  };
  struct Lent {
    int process;
    std::span<const std::byte> memory;
    std::unique_ptr<Link::Loan> loan;  // touched with the reactor's lock only
  };
  // The count of a message's slices that have come on one strand.
  struct Landing {
    uint32_t epoch = 0;
    int32_t next = 0;              // the first count that is not raised
    std::vector<int64_t> missing;  // bytes, by count modulo depth, from `next` on; -1: all
  };
  struct Region {
    RegionSpec spec;
    std::set<int> processes;  // of other hosts' ranks
    std::set<int> opened;     // of those: they have the region
    std::set<int> untold;     // of those: not yet notified that it is here
    std::vector<Sender> senders;
    std::map<std::pair<uint32_t, int32_t>, Landing> landings;  // by message and strand
  };
  struct HostGroup {
    HostGroupSpec spec;
    std::set<int> processes;          // others
    std::set<int> unwanted;           // of those: a link has not been asked for
    std::map<int, std::string> left;  // of those: ended normally
    std::set<int> untold;             // of those: not yet notified of the cause
    std::optional<std::string> cause;
    std::map<uint64_t, Region> regions;  // by key
    std::vector<Lent> lent;
  };
  struct EarlyFailure {
    int process;
    uint64_t group;
    std::string cause;
  };

  // All below: mutex_ held.
  void Fail(HostGroup& group, const std::string& cause, int told_by = -1);
  bool Tell(HostGroup& group, Carrier& carrier);
  bool StepSender(const HostGroup& group, Region& region, Sender& sender, Carrier& carrier);
  bool Advance(Region& region, Sender& sender, Cursor& cursor, Carrier& carrier);
  // The next bytes of a message, at most `left`; how many have gone, 0 if there is no room.
  int64_t SendPart(const Region& region, const Sender& sender, const Cursor& cursor,
                   const SlotUse& use, const HostRoutes::HostMessage& message, const Label& label,
                   int64_t left, Carrier& carrier);
  bool AdvanceDone(Region& region, Sender& sender, Cursor& cursor, Carrier& carrier);
  void Begin(const Region& region, Sender& sender);
  static int64_t UsesTold(const Region& region, const HostRoutes::HostMessage& message,
                          const SlotUse& use, uint32_t epoch);
  const char* OnArrived(HostGroup& group, Region& region, int process, const Label& label,
                        std::span<const std::byte> bytes);
  const char* OnFreed(HostGroup& group, Region& region, int process, const Label& label);
  const char* OnDone(HostGroup& group, Region& region, int process, const Label& label);
  Region* FindRegion(uint64_t key, HostGroup** group);
  static std::string WhoMisses(const HostGroup& group, const Region& region, const Sender& sender);
  static std::string OtherRoutes(const HostGroup& group, const Region& region, int process);
  static std::string RanksOf(const HostGroup& group, int process);
  static Link::Loan* LoanOf(const HostGroup& group, const RegionSpec& spec, int32_t rank,
                            int process);

  const int process_;
  std::mutex mutex_;
  CarrierAccess* access_ = nullptr;
  std::map<uint64_t, HostGroup> groups_;
  std::map<uint64_t, uint64_t> group_of_region_;
  std::map<std::pair<uint64_t, int>, uint64_t> early_opens_;  // (region, process) -> digest
  std::deque<EarlyFailure> early_failures_;
  std::chrono::steady_clock::time_point active_at_;
};

}  // namespace jaxcoll::cuda
