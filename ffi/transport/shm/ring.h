// Notices from one process to another: a ring in shared memory with one producer and one consumer.
//
// Each entry contains the number of its notice, which shows whether the entry is filled: a notice
// costs the consumer one cache line, not a second one for the producer's index. The other
// direction, what is free again, is one counter that the consumer moves once per batch.
//
// The memory is the consumer's, but the other side can write to all of it. Every value read from it
// is copied once and then checked against what this side knows; none is ever an index.
//
// Sleep. Either side may ask to be woken: it stores its flag, then looks at the ring once more; the
// other side changes the ring, then looks at the flag. All four are sequentially consistent, so
// that at least one of the two sees the other: no wake-up is lost. (Not fences, which say the same:
// ThreadSanitizer does not know them.)
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "transport/link.h"

namespace jaxcoll {

// Zeroed memory is an empty ring.
struct RingMemory {
  static constexpr uint64_t kEntryCount = 512;  // more than the engine has in flight to one peer

  struct alignas(64) Entry {
    Notice notice;
    std::atomic<uint64_t> number;  // of the notice, from 1; its store publishes the notice
  };

  alignas(64) std::atomic<uint64_t> consumed;  // its store gives entries back to the producer
  alignas(64) std::atomic<uint32_t> consumer_sleeps;
  alignas(64) std::atomic<uint32_t> producer_sleeps;  // with notices that found no room
  std::array<Entry, kEntryCount> entries;
};
static_assert(sizeof(RingMemory::Entry) == 64);
static_assert(std::atomic<uint64_t>::is_always_lock_free);
static_assert(std::atomic<uint32_t>::is_always_lock_free);

enum class RingResult {
  kDone,
  kWait,    // push: full; pop: empty
  kBroken,  // the other side wrote nonsense
};

class RingProducer {
 public:
  explicit RingProducer(RingMemory* ring) : ring_(ring) {}

  // After kDone: ConsumerMustBeWoken.
  RingResult Push(const Notice& notice) {
    if (pushed_ - consumed_ == RingMemory::kEntryCount) {
      if (RingResult room = LookForRoom(); room != RingResult::kDone) return room;
    }
    RingMemory::Entry& entry = ring_->entries[pushed_ % RingMemory::kEntryCount];
    entry.notice = notice;
    entry.number.store(++pushed_, std::memory_order_seq_cst);
    return RingResult::kDone;
  }

  // Takes the consumer's request: true once per sleep.
  bool ConsumerMustBeWoken() {
    return ring_->consumer_sleeps.load(std::memory_order_seq_cst) != 0 &&
           ring_->consumer_sleeps.exchange(0, std::memory_order_seq_cst) != 0;
  }

  // Asks to be woken when there is room; false if there is some already.
  bool SleepUntilRoom() {
    ring_->producer_sleeps.store(1, std::memory_order_seq_cst);
    return LookForRoom() == RingResult::kWait;
  }
  void Awake() { ring_->producer_sleeps.store(0, std::memory_order_relaxed); }

 private:
  RingResult LookForRoom() {
    const uint64_t consumed = ring_->consumed.load(std::memory_order_seq_cst);
    // As unsigned distances: it only increases, and never beyond the number of pushed notices.
    if (consumed - consumed_ > pushed_ - consumed_) return RingResult::kBroken;
    consumed_ = consumed;
    return pushed_ - consumed_ < RingMemory::kEntryCount ? RingResult::kDone : RingResult::kWait;
  }

  RingMemory* const ring_;
  uint64_t pushed_ = 0;
  uint64_t consumed_ = 0;  // as last read
};

class RingConsumer {
 public:
  explicit RingConsumer(RingMemory* ring) : ring_(ring) {}

  RingResult Pop(Notice& notice) {
    const RingMemory::Entry& entry = ring_->entries[popped_ % RingMemory::kEntryCount];
    if (RingResult result = Look(entry); result != RingResult::kDone) return result;
    notice = entry.notice;
    ++popped_;
    return RingResult::kDone;
  }

  // After a batch of Pop: returns its entries. True, once per sleep, if the producer wants to know.
  bool Release() {
    ring_->consumed.store(popped_, std::memory_order_seq_cst);
    return ring_->producer_sleeps.load(std::memory_order_seq_cst) != 0 &&
           ring_->producer_sleeps.exchange(0, std::memory_order_seq_cst) != 0;
  }

  // Asks to be woken by the next notice; false if there is one already.
  bool SleepUntilNotice() {
    ring_->consumer_sleeps.store(1, std::memory_order_seq_cst);
    return Look(ring_->entries[popped_ % RingMemory::kEntryCount]) == RingResult::kWait;
  }
  void Awake() { ring_->consumer_sleeps.store(0, std::memory_order_relaxed); }

 private:
  RingResult Look(const RingMemory::Entry& entry) const {
    const uint64_t number = entry.number.load(std::memory_order_seq_cst);
    if (number == popped_ + 1) return RingResult::kDone;
    const uint64_t last_round =
        popped_ < RingMemory::kEntryCount ? 0 : popped_ + 1 - RingMemory::kEntryCount;
    return number == last_round ? RingResult::kWait : RingResult::kBroken;
  }

  RingMemory* const ring_;
  uint64_t popped_ = 0;
};

}  // namespace jaxcoll
