// Links between reactors of one test process: deliveries are delayed and reordered by a seeded
// generator, and fail when the test says so. One thread; the same seed gives the same run.
//
// Each direction of a link is a Pipe. A put waits in it with its bytes (or, in a link that copies
// late, and from what was lent, with a pointer to them, as in a socket that does not take them yet
// and in a NIC) until its time has come; puts overtake each other, what is told does not.
#pragma once

#include <fcntl.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "comm/peer.h"
#include "transport/link.h"

namespace jaxcoll {

using Random = std::mt19937_64;

// Uniform in [low, high].
inline int64_t Draw(Random& random, int64_t low, int64_t high) {
  return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
}
inline bool Chance(Random& random, int percent) { return Draw(random, 0, 99) < percent; }

class FakeNet {
 public:
  using Clock = std::chrono::steady_clock;
  enum class Copying { kDirect, kAtOnce, kLate };

  FakeNet(Random& random, int max_delay_us) : random_(random), max_delay_us_(max_delay_us) {}

  Random& random() { return random_; }
  Clock::time_point now() const { return now_; }
  void Advance(std::chrono::microseconds by) { now_ += by; }
  uint64_t lent_puts = 0;  // from dma-bufs, so far
  uint64_t own_puts = 0;   // of bytes from elsewhere
  // Dma-bufs that links have borrowed and not returned. Links of several reactors count here, each
  // under the lock of its own.
  std::atomic<int> lent_buffers{0};
  Clock::time_point Due() {
    return now_ + std::chrono::microseconds(Draw(random_, 0, max_delay_us_));
  }

 private:
  Random& random_;
  const int max_delay_us_;
  // Not 0: the engine takes the epoch for "never".
  Clock::time_point now_ = Clock::time_point(std::chrono::hours(1));
};

// Windows are not cleared and used again: most of their pages are never touched.
class FakeWindow {
 public:
  FakeWindow() {
    if (Pool().empty()) {
      bytes_ = std::make_unique_for_overwrite<std::byte[]>(kWindowBytes);
    } else {
      bytes_ = std::move(Pool().back());
      Pool().pop_back();
    }
  }
  ~FakeWindow() { Pool().push_back(std::move(bytes_)); }
  FakeWindow(const FakeWindow&) = delete;
  FakeWindow& operator=(const FakeWindow&) = delete;
  std::span<std::byte> bytes() { return {bytes_.get(), kWindowBytes}; }

 private:
  static std::vector<std::unique_ptr<std::byte[]>>& Pool() {
    static std::vector<std::unique_ptr<std::byte[]>> pool;
    return pool;
  }
  std::unique_ptr<std::byte[]> bytes_;
};

// One direction.
struct FakePipe {
  struct Put {
    std::vector<std::byte> bytes;
    const std::byte* late = nullptr;  // instead of bytes
    size_t size = 0;
    size_t offset = 0;
    Notice notice;
    uint64_t token = 0;
    FakeNet::Clock::time_point due;
    bool in_place = false;             // the bytes are in the window
    std::shared_ptr<const bool> lent;  // of a loan: whether it still is
  };
  struct Told {
    std::string message;
    FakeNet::Clock::time_point due;
  };
  std::vector<Put> puts;
  std::deque<Told> told;
  std::vector<uint64_t> sent;  // tokens for the writer
  FakeWindow window;           // the reader's
  size_t carried = 0;          // bytes of all puts
  bool writer_gone = false;
  bool reader_gone = false;
  bool black_hole = false;  // swallows what is written; the reader sees no end
  bool broken = false;      // the reader's next Poll fails
};

class FakeLink final : public Link {
 public:
  FakeLink(FakeNet& net, int peer, std::shared_ptr<FakePipe> out, std::shared_ptr<FakePipe> in,
           FakeNet::Copying copying)
      : net_(net), peer_(peer), out_(std::move(out)), in_(std::move(in)), copying_(copying) {}

  ~FakeLink() override {
    out_->writer_gone = true;
    in_->reader_gone = true;
    // What was not copied yet is lost, and of the rest a part.
    const bool lossy = Chance(net_.random(), 50);
    std::erase_if(out_->puts, [&](const FakePipe::Put& put) {
      return put.late != nullptr || (lossy && Chance(net_.random(), 50));
    });
  }

  std::string_view transport() const override { return "fake"; }
  std::string Describe() const override { return "fake " + std::to_string(peer_); }
  std::span<std::byte> window() override { return in_->window.bytes(); }
  size_t remote_window_bytes() const override { return kWindowBytes; }
  std::byte* remote_window() override {
    return copying_ == FakeNet::Copying::kDirect ? out_->window.bytes().data() : nullptr;
  }

  bool Put(std::span<const std::byte> source, size_t offset, const Notice& notice,
           uint64_t token) override {
    if (!source.empty()) {
      JAXCOLL_CHECK(offset <= kWindowBytes && source.size() <= kWindowBytes - offset,
                    "%zu bytes at %zu", source.size(), offset);
    }
    net_.own_puts += !source.empty();
    FakePipe::Put put;
    put.size = source.size();
    out_->carried += put.size;
    put.offset = offset;
    put.notice = notice;
    put.token = token;
    put.due = net_.Due();
    if (source.data() == out_->window.bytes().data() + offset) {
      put.in_place = true;
    } else if (copying_ == FakeNet::Copying::kLate) {
      put.late = source.data();
    } else {
      put.bytes.assign(source.begin(), source.end());
    }
    const bool reusable = put.late == nullptr || source.empty();
    if (!out_->black_hole && !out_->reader_gone) out_->puts.push_back(std::move(put));
    return reusable;
  }

  bool takes_dmabuf = false;
  bool refuses_dmabuf = false;  // though it takes them

  bool TakesDmabuf() const override { return takes_dmabuf; }
  StatusOr<std::unique_ptr<Loan>> BorrowDmabuf(int fd, uint64_t offset,
                                               std::span<const std::byte> buffer) override {
    JAXCOLL_CHECK(takes_dmabuf && offset == 0 && fcntl(fd, F_GETFD) >= 0, "fd %d", fd);
    if (refuses_dmabuf) return Status(StatusCode::kUnavailable, "the test refuses to register it");
    return StatusOr<std::unique_ptr<Loan>>(std::make_unique<FakeLoan>(net_, buffer));
  }
  // Reads the source as late as can be.
  bool PutFrom(Loan& base, std::span<const std::byte> source, size_t offset, const Notice& notice,
               uint64_t token) override {
    const auto& loan = static_cast<FakeLoan&>(base);
    JAXCOLL_CHECK(!source.empty() && source.data() >= loan.buffer.data() &&
                      source.data() + source.size() <= loan.buffer.data() + loan.buffer.size() &&
                      offset <= kWindowBytes && source.size() <= kWindowBytes - offset,
                  "%zu bytes at %zu", source.size(), offset);
    ++net_.lent_puts;
    if (out_->black_hole || out_->reader_gone) return false;
    FakePipe::Put put;
    put.late = source.data();
    put.size = source.size();
    put.offset = offset;
    put.notice = notice;
    put.token = token;
    put.due = net_.Due();
    put.lent = loan.lent;
    out_->puts.push_back(std::move(put));
    return false;
  }

  void Detach(uint64_t token) override {
    std::erase(out_->sent, token);
    for (FakePipe::Put& put : out_->puts) {
      if (put.late == nullptr || put.token != token) continue;
      put.bytes.assign(put.late, put.late + put.size);
      put.late = nullptr;
    }
  }

  void Tell(std::string_view message) override {
    JAXCOLL_CHECK(message.size() <= (64 << 10), "%zu bytes", message.size());
    if (out_->black_hole || out_->reader_gone) return;
    const auto due = net_.Due();
    out_->told.push_back(
        {std::string(message), out_->told.empty() ? due : std::max(due, out_->told.back().due)});
  }

  StatusOr<bool> Poll(LinkSink& sink, int budget) override {
    bool active = false;
    for (const uint64_t token : std::exchange(out_->sent, {})) sink.OnSent(peer_, token);
    if (in_->broken) return Status(StatusCode::kUnavailable, "the test broke the link");
    while (budget > 0) {
      std::vector<size_t> due;
      for (size_t i = 0; i < in_->puts.size(); ++i) {
        if (in_->puts[i].due <= net_.now()) due.push_back(i);
      }
      const bool told = !in_->told.empty() && in_->told.front().due <= net_.now();
      if (due.empty() && !told) break;
      active = true;
      --budget;
      if (told && (due.empty() || Chance(net_.random(), 30))) {
        const std::string message = std::move(in_->told.front().message);
        in_->told.pop_front();
        sink.OnTold(peer_, message);
        continue;
      }
      const size_t chosen = due[Draw(net_.random(), 0, static_cast<int64_t>(due.size()) - 1)];
      const FakePipe::Put put = std::move(in_->puts[chosen]);
      in_->puts.erase(in_->puts.begin() + static_cast<std::ptrdiff_t>(chosen));
      JAXCOLL_CHECK(put.lent == nullptr || *put.lent, "a put of what is lent no more");
      if (put.size > 0 && !put.in_place) {
        std::memcpy(window().data() + put.offset, put.late != nullptr ? put.late : put.bytes.data(),
                    put.size);
      }
      if (put.late != nullptr) in_->sent.push_back(put.token);
      sink.OnNotice(peer_, put.notice);
      if (Chance(net_.random(), 20)) break;
    }
    if (in_->writer_gone && !in_->black_hole && in_->puts.empty() && in_->told.empty()) {
      return Status(StatusCode::kUnavailable, "fake peer is gone");
    }
    return active;
  }

  bool PrepareToSleep() override { return in_->puts.empty() && in_->told.empty(); }
  void Awake(bool) override {}
  std::vector<int> readable_fds() const override { return {}; }

 private:
  struct FakeLoan final : Loan {
    FakeLoan(FakeNet& net, std::span<const std::byte> buffer) : net(net), buffer(buffer) {
      ++net.lent_buffers;
    }
    ~FakeLoan() override {
      *lent = false;
      --net.lent_buffers;
    }
    FakeNet& net;
    const std::span<const std::byte> buffer;
    const std::shared_ptr<bool> lent = std::make_shared<bool>(true);
  };

  FakeNet& net_;
  const int peer_;
  const std::shared_ptr<FakePipe> out_, in_;
  const FakeNet::Copying copying_;
};

}  // namespace jaxcoll
