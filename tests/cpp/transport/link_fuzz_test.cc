// A peer that is broken or means harm: links end with an error that says why, and nothing is
// written outside of the window.

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <random>

#include "support/link_pair.h"
#include "support/record_writer.h"
#include "transport/link_error.h"
#include "transport/shm/segment.h"
#include "transport/tcp/frame.h"

namespace jaxcoll {
namespace {

constexpr size_t kWindowBytes = 100'000;

class LinkFuzzTest : public testing::Test {
 protected:
  LinkFuzzTest() : LinkFuzzTest(std::random_device()()) {}
  explicit LinkFuzzTest(uint64_t seed)
      : random(seed), trace_(__FILE__, __LINE__, "seed " + std::to_string(seed)) {}

  // Mostly the values at which something changes.
  uint64_t Odd(uint64_t limit) {
    switch (random() % 8) {
      case 0:
        return limit;
      case 1:
        return limit + 1;
      case 2:
        return ~uint64_t{0} - random() % 3;
      case 3:
        return random();
      case 4:
        return uint64_t{1} << random() % 64;
      default:
        return random() % std::max(limit, uint64_t{1});
    }
  }

  std::mt19937_64 random;

 private:
  testing::ScopedTrace trace_;
};

// --- tcp ----------------------------------------------------------------------------------------

// The link under test, and the bare socket of its peer, which has the keys.
struct RawPeer {
  explicit RawPeer(LinkKind kind) : writer(kind, /*client=*/false) {
    std::pair<EndParts, EndParts> parts;
    auto [ours, theirs] = SocketPair(SOCK_STREAM);
    parts.first.sockets.push_back(std::move(ours));
    end.emplace(kind, std::move(parts.first), kWindowBytes, 7);
    socket = std::move(theirs);
  }

  void Send(std::string_view bytes) {
    for (size_t sent = 0; sent < bytes.size();) {
      const ssize_t count =
          send(socket.get(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (count > 0) sent += count;
      if (count < 0 && (errno != EAGAIN || !end->end.ok())) return;  // the link has ended
      end->Poll();
    }
    while (end->Poll()) {
    }
  }
  void Send(const FrameHeader& header) { Send(writer.Frame(header)); }
  void SendHello() { Send(FrameRules{kWindowBytes, 0, 1}.Hello()); }

  RecordWriter writer;
  std::optional<LinkEnd> end;
  Fd socket;
};

// A peer that has the keys may still be faulty.
class TcpFuzzTest : public LinkFuzzTest, public testing::WithParamInterface<LinkKind> {};

INSTANTIATE_TEST_SUITE_P(Protections, TcpFuzzTest,
                         testing::Values(LinkKind::kTcpPlain, LinkKind::kTcp,
                                         LinkKind::kTcpEncrypted),
                         [](const testing::TestParamInfo<LinkKind>& info) {
                           return NameOf(info.param);
                         });

void ExpectBroken(const LinkEnd& end, const std::string& how) {
  EXPECT_EQ(end.end.code(), StatusCode::kInternal);
  EXPECT_EQ(end.end.message().find("peer process 7 (test) broke the protocol: "), 0u)
      << end.end.message();
  EXPECT_NE(end.end.message().find(how), std::string::npos) << end.end.message();
}

TEST_P(TcpFuzzTest, SaysWhatIsWrongWithAFrame) {
  const struct {
    FrameHeader header;
    const char* error;
  } cases[] = {
      {{123, FrameKind::kPut, 0, 0, {}}, "a frame starts with 123"},
      {{kFrameMagic, FrameKind{9}, 0, 0, {}}, "a frame of kind 9"},
      {{kFrameMagic, FrameKind::kHello, 0, kWindowBytes, {0, 1}}, "a second hello"},
      {{kFrameMagic, FrameKind::kPut, 1, kWindowBytes, {}}, "a put of 1 bytes at 100000 into"},
      {{kFrameMagic, FrameKind::kPut, kWindowBytes + 1, 0, {}}, "a put of 100001 bytes"},
      {{kFrameMagic, FrameKind::kPut, 2, ~uint64_t{0}, {}}, "a put of 2 bytes at 18446744"},
      {{kFrameMagic, FrameKind::kPut, ~uint64_t{0}, 2, {}}, "bytes at 2 into a window of 100000"},
      {{kFrameMagic, FrameKind::kTell, kMaxTellBytes + 1, 0, {}}, "a message of 65537 bytes"},
      {{kFrameMagic, FrameKind::kEnd, kJoinedBytes + 1, 0, {}}, "a reason of 4097 bytes"},
      {{kFrameMagic, FrameKind::kPut, 10, 0, {}},
       "the head of a frame has 72 bytes, its payload 10"},
  };
  for (const auto& c : cases) {
    RawPeer peer(GetParam());
    peer.SendHello();
    peer.Send(c.header);
    ExpectBroken(*peer.end, c.error);
    EXPECT_TRUE(peer.end->notices.empty());
  }
  RawPeer peer(GetParam());
  peer.Send({kFrameMagic, FrameKind::kPut, 0, 0, {}});
  ExpectBroken(*peer.end, "its first frame is not a hello");
}

TEST_P(TcpFuzzTest, RefusesPeersThatDisagree) {
  for (const FrameRules& rules : {FrameRules{kWindowBytes + 1, 0, 1},
                                  FrameRules{kWindowBytes, 1, 1}, FrameRules{kWindowBytes, 0, 2}}) {
    RawPeer peer(GetParam());
    peer.Send(rules.Hello());
    ExpectBroken(*peer.end, "its hello says");
  }
}

TEST_P(TcpFuzzTest, TakesWhatIsValidAndNothingElse) {
  for (int round = 0; round < 120; ++round) {
    RawPeer peer(GetParam());
    peer.SendHello();
    const std::span<std::byte> window = peer.end->link->window();
    std::vector<std::byte> expected(window.begin(), window.end());
    size_t notice_count = 0, told_count = 0;
    bool valid = true;
    while (valid && notice_count + told_count < 100) {
      FrameHeader header = {kFrameMagic, FrameKind::kPut, 0, 0, {random()}};
      if (random() % 4 == 0) header.kind = FrameKind::kTell;
      const bool odd = random() % 8 == 0;
      header.offset = odd ? Odd(kWindowBytes) : random() % kWindowBytes;
      header.bytes = odd ? Odd(random() % 2 ? kWindowBytes - header.offset : kMaxTellBytes)
                         : random() % std::min(kMaxTellBytes, kWindowBytes - header.offset);
      if (random() % 256 == 0) header.kind = FrameKind(random());
      if (random() % 256 == 0) header.magic = random();
      const bool put = header.kind == FrameKind::kPut;
      valid =
          header.magic == kFrameMagic &&
          ((put && header.offset <= kWindowBytes && header.bytes <= kWindowBytes - header.offset) ||
           (header.kind == FrameKind::kTell && header.bytes <= kMaxTellBytes));
      const auto fill = static_cast<char>(round + header.bytes);
      if (valid && put) {
        std::memset(expected.data() + header.offset, fill, header.bytes);
      }
      notice_count += valid && put;
      told_count += valid && !put;
      peer.Send(valid ? peer.writer.Whole(header, fill)
                      : peer.writer.Frame(header, std::string(random() % 200'000, fill)));
    }
    EXPECT_EQ(peer.end->end.ok(), valid);
    if (!valid) ExpectBroken(*peer.end, "");
    EXPECT_EQ(peer.end->notices.size(), notice_count);
    EXPECT_EQ(peer.end->told.size(), told_count);
    ASSERT_EQ(std::memcmp(window.data(), expected.data(), kWindowBytes), 0);
  }
}

TEST_P(TcpFuzzTest, SurvivesGarbageAndCutFrames) {
  for (int round = 0; round < 1000; ++round) {
    RawPeer peer(GetParam());
    if (random() % 4 != 0) peer.SendHello();
    // Valid frames, of which a few bytes are changed, cut off anywhere.
    std::string stream;
    for (int i = 0; i < 20; ++i) {
      const FrameKind kind = random() % 3 == 0 ? FrameKind::kTell : FrameKind::kPut;
      const uint64_t bytes = random() % (random() % 8 == 0 ? 50'000 : 300);
      stream += peer.writer.Whole({kFrameMagic, kind, bytes, random() % 50'000, {}});
    }
    for (uint64_t i = random() % 4; i > 0; --i) stream[random() % stream.size()] = random();
    for (size_t at = 0, cut = random() % stream.size(); at < cut;) {
      const size_t count = std::min<size_t>(cut - at, 1 + random() % 2000);
      peer.Send(std::string_view(stream).substr(at, count));
      at += count;
    }
    peer.socket = Fd();
    while (peer.end->Poll()) {
    }
    EXPECT_FALSE(peer.end->end.ok());
  }
}

// --- shm ----------------------------------------------------------------------------------------

// Two links, and the header of a's segment as a hostile b could write to it.
class ShmFuzzTest : public LinkFuzzTest {
 protected:
  ShmFuzzTest() {
    auto parts = MakeParts(LinkKind::kShm, kWindowBytes);
    void* address = mmap(nullptr, sizeof(SegmentHeader), PROT_READ | PROT_WRITE, MAP_SHARED,
                         parts.first.own_segment.get(), 0);
    EXPECT_NE(address, MAP_FAILED);
    header = static_cast<SegmentHeader*>(address);
    pair.emplace(LinkKind::kShm, std::move(parts), kWindowBytes);
  }
  ~ShmFuzzTest() override { munmap(header, sizeof(SegmentHeader)); }

  SegmentHeader* header;
  std::optional<LinkPair> pair;
};

TEST_F(ShmFuzzTest, AnImpossibleNumberEndsTheLink) {
  header->ring.entries[0].number = 3;
  pair->a.Poll();
  ExpectBroken(pair->a, "the number of a notice it wrote is impossible");
}

// b's own notices go through a's ring, so here b is the victim.
TEST_F(ShmFuzzTest, AnImpossibleCountOfConsumedNoticesEndsTheLink) {
  for (uint64_t i = 0; i < RingMemory::kEntryCount; ++i) pair->b.link->Put({}, 0, Notice{}, 0);
  header->ring.consumed = RingMemory::kEntryCount + 1;
  pair->b.link->Put({}, 0, Notice{}, 0);
  pair->b.Poll();
  EXPECT_EQ(pair->b.end.message(),
            "peer process 8 (test) broke the protocol: "
            "the count of consumed notices in its shared memory is impossible");
}

TEST_F(LinkFuzzTest, ShmSurvivesGarbageInTheRing) {
  for (int round = 0; round < 120; ++round) {
    auto parts = MakeParts(LinkKind::kShm, kWindowBytes);
    void* address = mmap(nullptr, sizeof(SegmentHeader), PROT_READ | PROT_WRITE, MAP_SHARED,
                         parts.first.own_segment.get(), 0);
    ASSERT_NE(address, MAP_FAILED);
    LinkPair pair(LinkKind::kShm, std::move(parts), kWindowBytes);
    auto* words = static_cast<std::atomic<uint64_t>*>(address);
    const size_t word_count = sizeof(SegmentHeader) / sizeof(uint64_t);
    for (int step = 0; step < 300; ++step) {
      for (int i = 0; i < 20; ++i) pair.b.link->Put({}, 0, Notice{random()}, 0);
      // The first words are the indices; the rest are entries.
      const size_t word = random() % 2 == 0 ? random() % 40 : random() % word_count;
      if (random() % 30 == 0) words[word] = Odd(RingMemory::kEntryCount);
      if (random() % 4 != 0) pair.a.Poll();
      pair.b.Poll();
      if (pair.a.end.ok()) pair.a.link->PrepareToSleep();
      if (pair.b.end.ok()) pair.b.link->PrepareToSleep();
    }
    if (!pair.a.end.ok()) ExpectBroken(pair.a, "");
    for (std::byte byte : pair.a.link->window()) ASSERT_EQ(byte, std::byte{0});
    EXPECT_EQ(pair.a.link->window().size(), kWindowBytes);  // whatever the header says by now
    munmap(address, sizeof(SegmentHeader));
  }
}

TEST_F(LinkFuzzTest, ShmRefusesMessagesThatAreTooLong) {
  auto parts = MakeParts(LinkKind::kShm, kWindowBytes);
  const Fd raw = std::move(parts.second.sockets[0]);
  LinkEnd end(LinkKind::kShm, std::move(parts.first), kWindowBytes, 7);
  const std::string message(kMaxTellBytes + 2, 'x');
  ASSERT_GT(send(raw.get(), message.data(), message.size(), MSG_NOSIGNAL), 0);
  while (end.Poll()) {
  }
  ExpectBroken(end, "it sent a message of 65538 bytes");
}

// The bytes that a peer could send as its segment. Each would be a SIGBUS or a stray write if it
// were taken.
TEST_F(LinkFuzzTest, ShmRefusesSegmentsThatAreNotSealedOrNotOfTheirSize) {
  const auto unsealed = [](size_t bytes, uint64_t window_bytes) {
    Fd fd(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    EXPECT_EQ(ftruncate(fd.get(), bytes), 0);
    const Fd real(*MakeShmSegment(0));
    uint64_t start[2];
    EXPECT_EQ(pread(real.get(), start, sizeof(start), 0), ssize_t{sizeof(start)});
    start[1] = window_bytes;
    EXPECT_GE(pwrite(fd.get(), start, std::min(bytes, sizeof(start)), 0), 0);
    return fd;
  };
  const auto sealed = [&](size_t bytes, uint64_t window_bytes, int seals) {
    Fd fd = unsealed(bytes, window_bytes);
    EXPECT_EQ(fcntl(fd.get(), F_ADD_SEALS, seals), 0);
    return fd;
  };
  const int seals = F_SEAL_SHRINK | F_SEAL_GROW;
  const size_t header_bytes = lseek(Fd(*MakeShmSegment(0)).get(), 0, SEEK_END);
  const size_t right = header_bytes + 8192;

  Fd file(open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  [[maybe_unused]] const int no_space = ftruncate(file.get(), right);  // or no such file at all
  Fd cases[] = {unsealed(right, 8192),
                sealed(right, 8192, F_SEAL_SHRINK),
                sealed(right, 8192, seals | F_SEAL_WRITE),
                sealed(right, 8193, seals),
                sealed(right, 4096, seals),
                sealed(right, ~uint64_t{0} - header_bytes, seals),
                sealed(right, ~uint64_t{0} - 100, seals),
                sealed(8, 0, seals),
                sealed(0, 0, seals),
                std::move(file),
                Fd(open("/dev/null", O_RDWR | O_CLOEXEC)),
                Fd()};
  for (Fd& fd : cases) {
    auto parts = MakeParts(LinkKind::kShm, kWindowBytes).first;
    const auto link =
        MakeShmLink(7, parts.sockets[0].release(), parts.own_segment.release(), fd.release(),
                    parts.own_bell.get(), parts.peer_bell.release(), "");
    EXPECT_FALSE(link.ok());
    EXPECT_NE(link.status().message().find("segment"), std::string::npos)
        << link.status().message();
  }
  // One that is as MakeShmSegment's is taken.
  ShmSegment segment;
  EXPECT_TRUE(segment.Map(sealed(right, 8000, seals).get()).ok());
  EXPECT_EQ(segment.window().size(), 8000u);
}

}  // namespace
}  // namespace jaxcoll
