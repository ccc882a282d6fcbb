// One link without the engine: what a put costs. Both processes call the same functions in the same
// order, one as the first and one as the second; benchmarks/transport.py does.
#include <nanobind/stl/string.h>
#include <nanobind/stl/unordered_map.h>
#include <nanobind/stl/vector.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <ctime>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "bindings/link_security.h"
#include "bindings/rdma_half.h"
#include "comm/peer.h"
#include "testing/testing.h"
#include "transport/crypto.h"
#include "transport/fd.h"
#include "transport/link.h"

namespace nb = nanobind;

namespace jaxcoll {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kMaxOutstanding = 64;
constexpr auto kBenchSpin = std::chrono::milliseconds(1);
constexpr auto kPatience = std::chrono::seconds(60);

class LinkBench final : public LinkSink {
 public:
  LinkBench() : bell_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)), source_(kWindowBytes) {}

  void Use(StatusOr<std::unique_ptr<Link>> link) {
    if (!link.ok()) throw nb::value_error(link.status().message().c_str());
    link_ = std::move(*link);
  }
  int bell() const { return bell_.get(); }
  std::string Describe() const { return link_ == nullptr ? "" : link_->Describe(); }

  // Puts of `bytes` that go back and forth; the duration of each round trip in seconds.
  std::vector<double> PingPong(uint64_t bytes, int rounds, bool first) {
    Check(bytes, rounds);
    nb::gil_scoped_release release;
    std::vector<double> times;
    for (int i = 0; i < rounds; ++i) {
      const Clock::time_point begin = Clock::now();
      if (first) Put(bytes, 0);
      Await(++expected_, notices_);
      if (!first) Put(bytes, 0);
      times.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
    }
    return times;
  }

  // `count` puts one way, each answered by a notice that frees its place; as many are in flight as
  // the window holds, 64 at most. Seconds, for the sender until the last answer. `source` is where
  // the bytes lie before: "staged", as those that the engine has put together; "copied", as an
  // array's; "lent", the same, which is lent anew as often as the window has been filled.
  double Stream(uint64_t bytes, int count, bool sends, const std::string& source) {
    Check(bytes, count);
    if (source == "lent" && link_->Borrow(source_) == nullptr) {
      throw nb::value_error("this link borrows nothing: rdma does, with JAXCOLL_IB_REGISTER_BYTES");
    }
    nb::gil_scoped_release release;
    const Clock::time_point begin = Clock::now();
    const uint64_t places =
        std::clamp<uint64_t>(kWindowBytes / std::max<uint64_t>(bytes, 1), 1, kMaxOutstanding);
    if (sends) {
      const uint64_t start = expected_;
      for (uint64_t i = 0; i < static_cast<uint64_t>(count); ++i) {
        if (i >= places) Await(start + i - places + 1, notices_);
        if (source == "lent" && i % places == 0) {
          Await(0, idle_);
          loan_ = link_->Borrow(source_);
        }
        Put(bytes, i % places * bytes, source != "staged");
      }
      expected_ += static_cast<uint64_t>(count);
      Await(expected_, notices_);
    } else {
      for (int i = 0; i < count; ++i) {
        Await(++expected_, notices_);
        Put(0, 0);
      }
    }
    Await(0, idle_);
    loan_.reset();
    return std::chrono::duration<double>(Clock::now() - begin).count();
  }

  void OnNotice(int, const Notice&) override { ++notices_; }
  void OnTold(int, std::string_view) override {}
  void OnSent(int, uint64_t) override { --unsent_; }

 private:
  void Check(uint64_t bytes, int count) const {
    if (link_ == nullptr || bytes > kWindowBytes || count < 1) {
      throw nb::value_error("there is no link, or so many bytes do not fit its window");
    }
  }

  void Put(uint64_t bytes, uint64_t offset, bool from_array = false) {
    std::byte* const staging = from_array ? nullptr : link_->staging();
    const std::byte* const at = (staging == nullptr ? source_.data() : staging) + offset;
    const std::span<const std::byte> source(at, bytes);
    const bool sent = loan_ != nullptr && bytes > 0
                          ? link_->PutFrom(*loan_, source, offset, Notice{}, 0)
                          : link_->Put(source, offset, Notice{}, 0);
    if (!sent) ++unsent_;
  }

  // Until `counter` has reached `count`; where `counter` is idle_, until all is sent.
  void Await(uint64_t count, const uint64_t& counter) {
    Clock::time_point last = Clock::now();
    while (&counter == &idle_ ? unsent_ > 0 || !link_->writable_fds().empty() : counter < count) {
      const StatusOr<bool> polled = link_->Poll(*this, 64);
      std::string trouble = polled.ok() ? "" : polled.status().message();
      if (polled.ok() && *polled) {
        last = Clock::now();
        continue;
      }
      if (Clock::now() - last > kPatience) trouble = "the peer has stopped responding";
      if (!trouble.empty()) {
        nb::gil_scoped_acquire acquire;
        throw nb::value_error(trouble.c_str());
      }
      if (Clock::now() - last > kBenchSpin) {
        Sleep();
      } else {
        ::sched_yield();
      }
    }
  }

  // As the engine does when nothing happens for a while: there may be more processes than cores.
  void Sleep() {
    if (!link_->PrepareToSleep()) return;
    std::vector<pollfd> fds = {{bell_.get(), POLLIN, 0}};
    for (const int fd : link_->readable_fds()) fds.push_back({fd, POLLIN, 0});
    for (const int fd : link_->writable_fds()) fds.push_back({fd, POLLOUT, 0});
    ::poll(fds.data(), fds.size(), 100);
    uint64_t rung;
    (void)!::read(bell_.get(), &rung, sizeof(rung));
    link_->Awake(true);
  }

  Fd bell_;
  std::vector<std::byte> source_;
  std::unique_ptr<Link> link_;
  std::unique_ptr<Link::Loan> loan_;  // of source_
  // The peer may be a function ahead: what counts is how many notices there were in all.
  uint64_t notices_ = 0;
  uint64_t expected_ = 0;
  int64_t unsent_ = 0;
  uint64_t idle_ = 0;
};

double ThreadSeconds() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// The speed that one core can reach at most with pieces of `bytes` in its cache, in bytes per
// second of its time: other processes do not count.
std::unordered_map<std::string, double> CryptoSpeed(size_t bytes, double seconds) {
  std::vector<std::byte> from(bytes), to(bytes);
  const auto measure = [&](auto&& work) {
    const double begin = ThreadSeconds();
    uint64_t rounds = 0;
    double passed = 0;
    while (passed < seconds) {
      for (int i = 0; i < 16; ++i, ++rounds) work();
      passed = ThreadSeconds() - begin;
    }
    return static_cast<double>(rounds * bytes) / passed;
  };
  std::unordered_map<std::string, double> speeds;
  speeds["copies"] = measure([&] {
    std::memcpy(to.data(), from.data(), bytes);
    asm volatile("" : : "r"(to.data()) : "memory");  // it was needed
  });
  const StatusOr<const crypto::LibCrypto*> library = crypto::Load();
  if (!library.ok()) throw nb::value_error(library.status().message().c_str());
  crypto::Gcm gcm(**library, true);
  crypto::Nonce nonce{};
  crypto::Tag tag;
  const std::array<std::byte, crypto::kAesKeyBytes> key{};
  bool works = gcm.SetKey(key);
  speeds["authenticates"] =
      measure([&] { works &= gcm.Seal(nonce, from, {}, nullptr, tag.data()); });
  speeds["encrypts"] = measure([&] { works &= gcm.Seal(nonce, {}, from, to.data(), tag.data()); });
  if (!works) throw nb::value_error("libcrypto fails");
  return speeds;
}

void BindCryptoSpeed(nb::module_& m) {
  m.def("crypto_speed_Bps", &CryptoSpeed, nb::call_guard<nb::gil_scoped_release>(),
        nb::arg("bytes"), nb::arg("seconds"),
        "The bytes that one core copies, authenticates and encrypts per second, for benchmarks.");
}

}  // namespace

void BindLinkBench(nb::module_& m) {
  BindCryptoSpeed(m);
  nb::class_<LinkBench>(m, "LinkBench", "A link without the engine, for benchmarks.")
      .def(nb::init<>())
      .def("bell", &LinkBench::bell)
      .def("describe", &LinkBench::Describe)
      .def(
          "use_shm",
          [](LinkBench& bench, int socket, int own_segment, int peer_segment, int peer_bell) {
            bench.Use(
                MakeShmLink(1, socket, own_segment, peer_segment, bench.bell(), peer_bell, "shm"));
          },
          nb::arg("socket"), nb::arg("own_segment"), nb::arg("peer_segment"), nb::arg("peer_bell"),
          "Takes over the descriptors.")
      .def(
          "use_tcp",
          [](LinkBench& bench, const std::vector<int>& sockets, const std::string& protection,
             const nb::bytes& link_key, bool client) {
            TcpSecurity security;
            if (protection != "plain") {
              security = SecurityOf(link_key, client, protection == "encrypted");
            }
            bench.Use(MakeTcpLink(1, sockets, kWindowBytes, security, "tcp, " + protection));
          },
          nb::arg("sockets"), nb::arg("protection"), nb::arg("link_key"), nb::arg("client"),
          "Takes over the descriptors. `protection`: plain, authenticated or encrypted.")
      .def(
          "use_rdma",
          [](LinkBench& bench, RdmaHalf& half, int socket, const nb::bytes& offer) {
            std::unique_ptr<RdmaLink> link = std::move(half.link);
            if (link == nullptr) throw nb::value_error("this half has become a link");
            const Status status = link->Join(1, socket, {offer.c_str(), offer.size()}, {}, "rdma");
            if (!status.ok()) throw nb::value_error(status.message().c_str());
            bench.Use(StatusOr<std::unique_ptr<Link>>(std::move(link)));
          },
          nb::arg("half"), nb::arg("socket"), nb::arg("offer"), "Takes over socket and half.")
      .def("ping_pong", &LinkBench::PingPong, nb::arg("bytes"), nb::arg("rounds"), nb::arg("first"),
           "Seconds of each round trip of a put of so many bytes.")
      .def("stream", &LinkBench::Stream, nb::arg("bytes"), nb::arg("count"), nb::arg("sends"),
           nb::arg("source") = "staged",
           "Seconds that so many puts one way take, until all are answered.");
}

}  // namespace jaxcoll
