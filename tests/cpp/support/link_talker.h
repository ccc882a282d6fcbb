// A conversation over a link that notices anything lost, repeated, torn or stale.
#pragma once

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "support/link_pair.h"

namespace jaxcoll {

// One side of a conversation: `count` puts through `slots` places of the peer's window, each
// answered by a notice that frees its place. Sleeps whenever there is nothing to do.
class Talker {
 public:
  static constexpr size_t kSlotBytes = 16384;
  enum Kind : uint64_t { kData, kFree };

  Talker(LinkEnd& end, size_t window_bytes, uint64_t count, bool pauses, uint64_t seed)
      : end_(end),
        count_(count),
        pauses_(pauses),
        random_(seed),
        sources_(window_bytes / kSlotBytes),
        seen_(count) {
    for (uint64_t slot = 0; slot < sources_.size(); ++slot) free_.push_back(slot);
    end_.on_notice = [this](const Notice& notice) { OnNotice(notice); };
    end_.on_sent = [this](uint64_t token) {
      sending_.erase(token);
      loans_.erase(token);
    };
    end_.on_told = [this](std::string_view) { peer_done_ = true; };
  }

  // Returns what went wrong, or nothing.
  std::string Run() {
    while (true) {
      if (const auto end = Turn()) return *end;
      if (pauses_ && random_() % 8 == 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(random_() % 40));
      }
      if (!end_.PollOrSleep()) return "not woken";
    }
  }

  // All that can be done before the link is polled; nothing if it has to be called again.
  std::optional<std::string> Turn() {
    // The other one may leave as soon as both are done.
    if (!end_.end.ok()) return told_ ? "" : end_.end.message();
    if (!error_.empty()) return error_;
    if (on_turn) on_turn(received_);
    Send();
    if (!told_ && freed_ == count_ && received_ == count_) {
      told_ = true;
      end_.link->Tell("done");
    }
    if (told_ && peer_done_ && end_.link->writable_fds().empty()) return "";
    return std::nullopt;
  }

  std::function<void(uint64_t received)> on_turn;
  bool lends = false;  // its sources, for as long as they are sent

 private:
  void Send() {
    for (int burst = 0; burst < 20 && !free_.empty() && next_ < count_; ++burst) {
      const uint64_t slot = free_.back();
      if (sending_.contains(slot)) return;
      free_.pop_back();
      const size_t size = random_() % 4 == 0 ? random_() % (kSlotBytes / 8) : random_() % 16;
      std::vector<uint64_t>& source = sources_[slot];
      source.resize(size);
      std::iota(source.begin(), source.end(), next_ * 1'000'003);
      const Notice notice = {kData, next_++, slot, size, next_ * 7, ~slot};
      if (!Put(std::as_bytes(std::span(source)), slot * kSlotBytes, notice, slot)) {
        sending_.insert(slot);
      }
    }
  }

  bool Put(std::span<const std::byte> source, size_t offset, const Notice& notice, uint64_t slot) {
    if (!lends || source.empty()) return end_.link->Put(source, offset, notice, slot);
    auto loan = end_.link->Borrow(source);
    if (loan == nullptr) return end_.link->Put(source, offset, notice, slot);
    const bool sent = end_.link->PutFrom(*loan, source, offset, notice, slot);
    if (!sent) loans_[slot] = std::move(loan);
    return sent;
  }

  void OnNotice(const Notice& notice) {
    const uint64_t slot = notice[2];
    if (notice[0] == kFree) {
      ++freed_;
      free_.push_back(slot);
      return;
    }
    const uint64_t number = notice[1];
    if (number >= count_ || seen_[number]) error_ = "a notice came twice, or is wrong";
    if (notice[4] != (number + 1) * 7 || notice[5] != ~slot) error_ = "a notice is torn";
    if (!error_.empty()) return;
    seen_[number] = true;
    ++received_;
    std::byte* data = end_.link->window().data() + slot * kSlotBytes;
    for (uint64_t i = 0; i < notice[3]; ++i) {
      uint64_t word;
      std::memcpy(&word, data + i * 8, 8);
      if (word != number * 1'000'003 + i) error_ = "the bytes of a put are not those put";
    }
    std::memset(data, 0, notice[3] * 8);  // so that stale bytes cannot pass
    end_.link->Put({}, 0, Notice{kFree, 0, slot}, 0);
  }

  LinkEnd& end_;
  const uint64_t count_;
  const bool pauses_;
  std::mt19937_64 random_;
  std::vector<std::vector<uint64_t>> sources_;
  std::vector<uint64_t> free_;
  std::set<uint64_t> sending_;
  std::map<uint64_t, std::unique_ptr<Link::Loan>> loans_;
  std::vector<bool> seen_;
  uint64_t next_ = 0, received_ = 0, freed_ = 0;
  bool told_ = false, peer_done_ = false;
  std::string error_;
};

}  // namespace jaxcoll
