// The messages that the ranks of a schedule send to ranks of other hosts, and in which order: what
// the host needs to know so that a launch, or the replay of one, needs no call. Plain numbers,
// computed from the packed tables (device_table.h). Processes agree on the messages between them.
//
// A block of a rank runs the ops of its worker in order, slice by slice. So the flags that it
// raises at ranks of other hosts come in an order that is known: `signals`, once for each slice
// of its strand.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "gpu/abi/device_table.h"

namespace jaxcoll::cuda {

// A slot of one message, for one slice.
struct SlotUse {
  const TableCall* call;
  int32_t slice;
  int32_t strand() const { return slice % call->strands; }
  int32_t count() const { return slice / call->strands; }
};

class HostRoutes {
 public:
  // Chunks that follow each other in their slot and in their block; see TablePiece.
  struct Strips {
    int32_t slot;
    int32_t position;
    int32_t count;
  };
  // All that one op sends to one rank: one message of the schedule, or several that go side by
  // side, each with flags of its own.
  struct HostMessage {
    uint32_t id;  // equal in all processes; ascends
    int32_t source;
    int32_t destination;
    int32_t worker;                   // of the source and of the destination
    std::vector<int32_t> arrivals;    // flags at the destination
    std::vector<int32_t> departures;  // flags at the source: slots that are free again
    std::vector<Strips> strips;
  };
  struct Signal {
    int32_t message;
    int32_t departure;  // which one; -1: the message arrives
    bool arrives() const { return departure < 0; }
  };

  // The messages and signals of `own` ranks. `tables`: of these and of all ranks of other hosts
  // with which they exchange messages; ranks ascend. `calls`: the launches of one call of the
  // instruction, one after the other; their sizes count, their pointers do not.
  static StatusOr<HostRoutes> Make(std::span<const DeviceTable> tables,
                                   std::span<const int32_t> own, std::vector<TableCall> calls,
                                   const std::vector<int>& host_of_rank);

  // Makes the routes of an exchange whose sizes stand in device memory (ragged_exchange.h): a
  // message between each two ranks of different hosts. How often a strand uses its slot, and how
  // much the last use holds, stands in its first flag.
  static StatusOr<HostRoutes> MakeRagged(const TableHeader& header, const TableCall& call,
                                         const std::vector<int>& host_of_rank);
  bool sized_by_flags() const { return sized_by_flags_; }

  int32_t world_size() const { return header_.world_size; }
  int32_t workers() const { return header_.workers; }
  const std::vector<TableCall>& calls() const { return calls_; }
  const std::vector<HostMessage>& messages() const { return messages_; }  // ids ascend
  const HostMessage* Find(uint32_t id) const;                             // null: there is none
  // The flags that the worker's blocks raise at ranks of other hosts in each slice.
  const std::vector<Signal>& Signals(int32_t rank, int32_t worker) const {
    return signals_[rank][worker];
  }
  // The digest of everything above, as far as two processes have to agree on it: of the messages
  // between their ranks.
  uint64_t DigestBetween(const std::vector<int>& process_of_rank, int a, int b) const;

  // Bytes in a region, from its start.
  size_t FlagAt(const HostMessage& message, int32_t flag, const SlotUse& use) const {
    return static_cast<size_t>(
        FlagOffset(header_, use.call->strands, use.strand(), message.worker, flag));
  }
  static size_t DoneAt(int32_t rank) { return static_cast<size_t>(DoneOffset(rank)); }
  // How far a region is used.
  static size_t RegionBytes(const TableCall& call) {
    return static_cast<size_t>(call.scratch_offset);
  }

  // A message's numbers, one chunk behind the other, without the gaps that slots have. Sized by
  // flags: of a full slot.
  int64_t Bytes(const HostMessage& message, const SlotUse& use) const;
  // A run of these bytes from `first` on: as many as lie together in a slot, but no more than
  // `most`.
  struct Stretch {
    int64_t at;  // in a region
    int64_t bytes;
  };
  Stretch StretchAt(const HostMessage& message, const SlotUse& use, int64_t first,
                    int64_t most) const;
  // Bytes [first, first + to.size()) of them, from or to the slot in `region`.
  void Gather(const HostMessage& message, const SlotUse& use, const unsigned char* region,
              int64_t first, std::span<std::byte> to) const;
  void Scatter(const HostMessage& message, const SlotUse& use, unsigned char* region, int64_t first,
               std::span<const std::byte> from) const;

 private:
  // Calls `visit` for the part of each chunk that is within [first, first + bytes).
  template <typename Visit>
  void ForEach(const HostMessage& message, const SlotUse& use, int64_t first, int64_t bytes,
               Visit visit) const;
  const TableVector& VectorOf(const SlotUse& use) const;
  Status AddOps(const DeviceTable& packed, std::span<const int32_t> own,
                const std::vector<int>& host_of_rank);
  Status OrderSignals(const DeviceTable& packed, const std::vector<int>& host_of_rank);

  TableHeader header_ = {};  // of one of the tables: what is equal in all counts
  std::vector<TableCall> calls_;
  std::vector<HostMessage> messages_;
  std::vector<std::vector<std::vector<Signal>>> signals_;  // [rank][worker]
  bool sized_by_flags_ = false;
};

}  // namespace jaxcoll::cuda
