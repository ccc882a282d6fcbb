// An attacker between two hosts: whatever it changes, repeats, drops, moves, injects or cuts off,
// the link ends with an error that says so, and nothing wrong is delivered.

#include <algorithm>
#include <cstring>
#include <functional>
#include <random>
#include <set>

#include "support/link_pair.h"
#include "support/record_writer.h"
#include "transport/crypto.h"
#include "transport/link_error.h"
#include "transport/tcp/frame.h"
#include "transport/tcp/seal.h"

namespace jaxcoll {
namespace {

constexpr size_t kWindowBytes = size_t{1} << 18;
constexpr size_t kLargeBytes = 2 * RecordSeal::kPieceBytes + 5000;
constexpr size_t kHeadOverhead = sizeof(HeadSize) + sizeof(FrameHeader) + crypto::kTagBytes;

std::vector<std::byte> Pattern(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

// Everything that can be read from a socket now.
std::string ReadAll(const Fd& fd) {
  std::string all;
  std::array<char, 65536> part;
  for (ssize_t count; (count = recv(fd.get(), part.data(), part.size(), MSG_DONTWAIT)) > 0;) {
    all.append(part.data(), static_cast<size_t>(count));
  }
  return all;
}

// One end of a link whose sockets end here, in the hands of whoever stands between.
struct Victim {
  Victim(LinkKind kind, bool client) {
    EndParts parts;
    for (int i = 0; i < SocketCount(kind); ++i) {
      auto [ours, theirs] = SocketPair(SOCK_STREAM);
      parts.sockets.push_back(std::move(ours));
      sockets.push_back(std::move(theirs));
    }
    end.emplace(kind, std::move(parts), kWindowBytes, client ? 7 : 8);
  }

  void Feed(std::string_view bytes, size_t socket = 0) {
    while (!bytes.empty()) {
      const ssize_t count =
          send(sockets[socket].get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (count > 0) bytes.remove_prefix(static_cast<size_t>(count));
      if (count < 0 && (errno != EAGAIN || !end->end.ok())) return;  // the link has ended
      end->Poll();
    }
    while (end->Poll()) {
    }
  }
  void Cut() {
    sockets.clear();
    while (end->end.ok()) ASSERT_TRUE(end->PollOrSleep());
  }

  std::vector<Fd> sockets;
  std::optional<LinkEnd> end;
};

// The stream of an honest server: frames of every kind, each as its own piece of the stream.
struct Recording {
  struct Frame {
    std::string bytes;
    std::optional<Notice> notice;
    size_t offset = 0;
    std::vector<std::byte> payload;
    std::string told;
  };

  explicit Recording(LinkKind kind) {
    Victim sender(kind, /*client=*/false);
    const auto record = [&](Frame frame) {
      while (true) {
        const bool any = sender.end->Poll();
        frame.bytes += ReadAll(sender.sockets[0]);
        if (!any && sender.end->link->writable_fds().empty()) break;
      }
      frames.push_back(std::move(frame));
    };
    record({});  // the hello
    for (const size_t size : {size_t{0}, size_t{100}, kLargeBytes, kJoinedBytes}) {
      Frame frame;
      frame.offset = size == 0 ? 0 : 1000 + frames.size() * 7;
      frame.payload = Pattern(size, size);
      frame.notice = Notice{frames.size(), size, frame.offset, 4, 5, 6};
      sender.end->link->Put(frame.payload, frame.offset, *frame.notice, 1);
      record(std::move(frame));
      Frame told;
      told.told = std::string(50, static_cast<char>('a' + frames.size()));
      sender.end->link->Tell(told.told);
      record(std::move(told));
    }
  }

  std::string Stream() const {
    std::string stream;
    for (const Frame& frame : frames) stream += frame.bytes;
    return stream;
  }

  std::vector<Frame> frames;
};

class LinkTamperTest : public testing::TestWithParam<LinkKind> {
 protected:
  LinkTamperTest() : recording(GetParam()), stream(recording.Stream()) {}

  // Expects that the delivered frames are a prefix of those sent, to the last byte.
  void ExpectPrefix(const LinkEnd& end) {
    size_t notices = 0, told = 0;
    for (const Recording::Frame& frame : recording.frames) {
      if (frame.notice) {
        if (notices == end.notices.size()) break;
        ASSERT_EQ(end.notices[notices++], *frame.notice);
        continue;
      }
      if (frame.told.empty()) continue;
      if (told == end.told.size()) break;
      ASSERT_EQ(end.told[told++], frame.told);
    }
    EXPECT_EQ(notices, end.notices.size());
    EXPECT_EQ(told, end.told.size());
  }

  void ExpectAltered(const LinkEnd& end) {
    ASSERT_EQ(end.end.code(), StatusCode::kInternal) << end.end.message();
    EXPECT_EQ(end.end.message().find("peer process 7 (test): frame "), 0u) << end.end.message();
    EXPECT_NE(end.end.message().find(" of socket 0 failed its check: it was altered on the way"),
              std::string::npos)
        << end.end.message();
    ExpectPrefix(end);
    EXPECT_LT(end.notices.size() + end.told.size(), 8u);
  }

  // Feeds a stream to an honest client.
  void Try(const std::string& bytes, const std::function<void(const LinkEnd&)>& check) {
    Victim victim(GetParam(), /*client=*/true);
    victim.Feed(bytes);
    check(*victim.end);
  }
  void ExpectCaught(const std::string& bytes) {
    Try(bytes, [this](const LinkEnd& end) { ExpectAltered(end); });
  }

  const Recording recording;
  const std::string stream;
  std::mt19937_64 random{1};
};

TEST_P(LinkTamperTest, AnUntouchedStreamIsDelivered) {
  Victim victim(GetParam(), true);
  victim.Feed(stream);
  EXPECT_TRUE(victim.end->end.ok()) << victim.end->end.message();
  ASSERT_EQ(victim.end->notices.size(), 4u);
  EXPECT_EQ(victim.end->told.size(), 4u);
  ExpectPrefix(*victim.end);
  const auto& last = recording.frames[7];
  EXPECT_EQ(std::memcmp(victim.end->link->window().data() + last.offset, last.payload.data(),
                        last.payload.size()),
            0);
}

// Sizes, headers, joined payloads and all tags: every byte. In a large payload, the ends of its
// pieces and some bytes between.
TEST_P(LinkTamperTest, EveryFlippedBitIsCaught) {
  std::set<size_t> positions;
  size_t at = 0;
  for (const Recording::Frame& frame : recording.frames) {
    const size_t size = frame.bytes.size();
    for (size_t i = 0; i < size; ++i) {
      const bool large = size > kLargeBytes;
      const size_t in_piece = (i - kHeadOverhead) % (RecordSeal::kPieceBytes + crypto::kTagBytes);
      if (!large || i < kHeadOverhead || i + crypto::kTagBytes + 8 > size || in_piece < 4 ||
          in_piece > RecordSeal::kPieceBytes - 4 || random() % 1500 == 0) {
        if (size < 1000 || large || i < 200 || i + 40 > size || random() % 40 == 0) {
          positions.insert(at + i);
        }
      }
    }
    at += size;
  }
  for (const size_t position : positions) {
    std::string altered = stream;
    altered[position] = static_cast<char>(altered[position] ^ 1 << random() % 8);
    SCOPED_TRACE("byte " + std::to_string(position));
    ExpectCaught(altered);
    if (HasFatalFailure()) return;
  }
}

// A flipped bit is found at once, not when more comes: also if nothing follows its record.
TEST_P(LinkTamperTest, AFlippedBitIsCaughtThoughNothingFollows) {
  const std::string first = recording.frames[0].bytes + recording.frames[1].bytes;
  for (size_t bit = recording.frames[0].bytes.size() * 8; bit < first.size() * 8; ++bit) {
    std::string altered = first;
    altered[bit / 8] = static_cast<char>(altered[bit / 8] ^ 1 << bit % 8);
    SCOPED_TRACE("bit " + std::to_string(bit));
    ExpectCaught(altered);
    if (HasFatalFailure()) return;
  }
}

// Nothing of a head is used before it has been checked, and a piece that is altered goes where the
// peer may write and nobody reads yet.
TEST_P(LinkTamperTest, NothingIsWrittenButWhereAPutGoes) {
  const Recording::Frame& large = recording.frames[5];
  ASSERT_EQ(large.payload.size(), kLargeBytes);
  size_t before = 0;
  for (int i = 0; i < 5; ++i) before += recording.frames[i].bytes.size();
  for (const size_t position : {size_t{0}, size_t{10}, size_t{20}, kHeadOverhead + 5}) {
    Victim victim(GetParam(), true);
    victim.Feed(stream.substr(0, before));
    const auto window = victim.end->link->window();
    std::fill(window.begin(), window.end(), std::byte{0x5a});
    std::string altered = stream.substr(before);
    altered[position] = static_cast<char>(altered[position] ^ 0x10);
    victim.Feed(altered);
    ExpectAltered(*victim.end);
    for (size_t i = 0; i < window.size(); ++i) {
      const bool inside =
          position > kHeadOverhead && i >= large.offset && i < large.offset + large.payload.size();
      if (inside) continue;
      ASSERT_EQ(window[i], std::byte{0x5a}) << i << " after byte " << position;
    }
  }
}

TEST_P(LinkTamperTest, RepeatedMovedAndMissingFramesAreCaught) {
  const auto& frames = recording.frames;
  for (size_t i = 0; i < frames.size(); ++i) {
    SCOPED_TRACE("frame " + std::to_string(i));
    std::string repeated, missing, moved;
    for (size_t j = 0; j < frames.size(); ++j) {
      repeated += frames[j].bytes;
      if (j == i) repeated += frames[j].bytes;
      if (j != i) missing += frames[j].bytes;
      moved += frames[j == i                         ? (i + 1) % frames.size()
                      : j == (i + 1) % frames.size() ? i
                                                     : j]
                   .bytes;
    }
    if (i + 1 < frames.size()) {
      ExpectCaught(repeated);
      ExpectCaught(missing);
    } else {
      Try(repeated, [](const LinkEnd& end) {
        EXPECT_NE(end.end.message().find("failed its check"), std::string::npos);
        EXPECT_EQ(end.notices.size() + end.told.size(), 8u);
      });
    }
    ExpectCaught(moved);
    if (HasFatalFailure()) return;
  }
}

TEST_P(LinkTamperTest, PiecesThatChangePlacesOrGoMissingAreCaught) {
  size_t before = 0;
  for (int i = 0; i < 5; ++i) before += recording.frames[i].bytes.size();
  constexpr size_t kStep = RecordSeal::kPieceBytes + crypto::kTagBytes;
  const size_t first = before + kHeadOverhead;
  std::string moved = stream;
  std::swap_ranges(moved.begin() + first, moved.begin() + first + kStep,
                   moved.begin() + first + kStep);
  ExpectCaught(moved);
  ExpectCaught(std::string(stream).erase(first, kStep));
  ExpectCaught(std::string(stream).insert(first, stream.substr(first, kStep)));
  ExpectCaught(std::string(stream).erase(first + 100, 1));
  ExpectCaught(std::string(stream).insert(first + 100, "x"));
}

// Good records, but of another socket, direction, link or mode, or made without the key.
TEST_P(LinkTamperTest, RecordsFromElsewhereAreCaught) {
  const FrameHeader hello = FrameRules{kWindowBytes, 0, 1}.Hello();
  const TcpSecurity right = TestSecurity(GetParam(), /*client=*/false);
  TcpSecurity reflected = right, other_link = right, other_mode = right;
  reflected.client = true;
  other_link.link_key[31] ^= 1;
  other_mode.encrypt = !right.encrypt;
  const std::pair<TcpSecurity, uint64_t> writers[] = {
      {right, 1}, {reflected, 0}, {other_link, 0}, {other_mode, 0}, {TcpSecurity{}, 0}};
  for (const auto& [security, socket] : writers) {
    RecordWriter writer(security, socket);
    std::string bytes = writer.Frame(hello);
    ExpectCaught(bytes + std::string(crypto::kTagBytes, '\0'));
    // The same after an honest beginning, its number right.
    bytes = writer.Frame({kFrameMagic, FrameKind::kPut, 0, 0, {}});
    ExpectCaught(recording.frames[0].bytes + bytes + std::string(crypto::kTagBytes, '\0'));
  }
  RecordWriter honest(right, 0);
  Victim victim(GetParam(), true);
  victim.Feed(honest.Frame(hello));
  victim.Feed(honest.Frame({kFrameMagic, FrameKind::kPut, 0, 0, {}}));
  EXPECT_EQ(victim.end->notices.size(), 1u);
}

TEST_P(LinkTamperTest, WhereverTheStreamIsCutTheLinkIsGoneAndSaysIfItWasWithinAFrame) {
  std::set<size_t> whole = {0};
  for (const auto& frame : recording.frames) whole.insert(*whole.rbegin() + frame.bytes.size());
  std::set<size_t> cuts = whole;
  for (const size_t end : whole) {
    for (const size_t by : {1, 4, 15, 16, 17, 80, 92, 93}) {
      if (end >= by) cuts.insert(end - by);
      if (end + by < stream.size()) cuts.insert(end + by);
    }
  }
  for (const size_t cut : cuts) {
    SCOPED_TRACE("after " + std::to_string(cut) + " bytes");
    Victim victim(GetParam(), true);
    victim.Feed(std::string_view(stream).substr(0, cut));
    victim.Cut();
    const Status& end = victim.end->end;
    EXPECT_EQ(end.code(), StatusCode::kUnavailable);
    EXPECT_EQ(end.message().find("peer process 7 (test) is gone"), 0u) << end.message();
    EXPECT_EQ(end.message().find("socket 0 was cut off within frame ") == std::string::npos,
              whole.contains(cut))
        << end.message();
    ExpectPrefix(*victim.end);
  }
}

TEST_P(LinkTamperTest, TheOtherSideHearsWhy) {
  Victim a(GetParam(), true), b(GetParam(), false);
  std::vector<std::byte> source(kLargeBytes);
  a.end->link->Put(source, 0, Notice{1}, 0);
  bool altered = false;
  for (int i = 0; i < 10'000 && (a.end->end.ok() || b.end->end.ok()); ++i) {
    a.end->Poll();
    b.end->Poll();
    std::string from_a = ReadAll(a.sockets[0]);
    if (from_a.size() > 5000 && !std::exchange(altered, true)) from_a[4000] ^= 1;
    b.Feed(from_a);
    a.Feed(ReadAll(b.sockets[0]));
  }
  EXPECT_EQ(b.end->end.code(), StatusCode::kInternal);
  EXPECT_NE(b.end->end.message().find("frame 1 of socket 0 failed its check"), std::string::npos)
      << b.end->end.message();
  EXPECT_TRUE(b.end->notices.empty());
  EXPECT_EQ(a.end->end.code(), StatusCode::kUnavailable);
  EXPECT_EQ(a.end->end.message().find("peer process 7 (test) has ended the link: "), 0u)
      << a.end->end.message();
  EXPECT_NE(a.end->end.message().find("frame 1 of socket 0 failed its check"), std::string::npos);
}

// A source is read in place, and never written to; with encryption neither it nor the header can be
// read in transit.
TEST_P(LinkTamperTest, OnlyEncryptionHidesAndNoSourceIsWrittenTo) {
  const bool encrypts = GetParam() == LinkKind::kTcpEncrypted;
  Victim sender(GetParam(), false);
  const std::vector<std::byte> source(kLargeBytes, std::byte{'s'});
  const Notice notice = {0x6e6f746963656e6f};
  std::string sent;
  const auto drain = [&] {
    while (sender.end->Poll() || !sender.end->link->writable_fds().empty()) {
      sent += ReadAll(sender.sockets[0]);
    }
    sent += ReadAll(sender.sockets[0]);
  };
  sender.end->link->Put(source, 0, notice, 0);
  drain();
  sender.end->link->Put(std::span(source).first(100), 0, notice, 0);
  sender.end->link->Tell(std::string(40, 's'));
  drain();
  EXPECT_EQ(source, std::vector<std::byte>(kLargeBytes, std::byte{'s'}));
  EXPECT_GT(sent.size(), kLargeBytes);
  const std::string magic("JCL1"), name(reinterpret_cast<const char*>(notice.data()), 8);
  for (const std::string& text : {std::string(16, 's'), magic, name}) {
    EXPECT_EQ(sent.find(text) == std::string::npos, encrypts) << text;
  }
}

TEST_P(LinkTamperTest, AKeyIsReplacedBeforeItHasSealedTooMuchAndNeitherSideLosesCount) {
  const TcpSecurity client = TestSecurity(GetParam(), true);
  const TcpSecurity server = TestSecurity(GetParam(), false);
  const auto out = std::move(*RecordSeal::Make(client, 3, true));
  const auto in = std::move(*RecordSeal::Make(server, 3, false));
  std::array<std::byte, 8> record;
  std::array<std::byte, crypto::kTagBytes> tag;
  for (uint64_t i = 0; i < RecordSeal::kRecordsPerKey + 3; ++i) {
    std::memcpy(record.data(), &i, sizeof(i));
    ASSERT_TRUE(out->Seal(record, 4, record.data() + 4, tag.data()));
    ASSERT_TRUE(in->Open(record, 4, tag.data())) << i;
    uint64_t opened;
    std::memcpy(&opened, record.data(), sizeof(opened));
    ASSERT_EQ(opened, i);
  }
}

INSTANTIATE_TEST_SUITE_P(Protections, LinkTamperTest,
                         testing::Values(LinkKind::kTcp, LinkKind::kTcpEncrypted),
                         [](const testing::TestParamInfo<LinkKind>& info) {
                           return NameOf(info.param);
                         });

// One of four sockets loses its end: a later message says that something is missing.
TEST(LinkCutTest, PutsThatWereCutOffAreMissedThoughTheRestEndsInOrder) {
  Victim sender(LinkKind::kTcp4, false), receiver(LinkKind::kTcp4, true);
  std::array<std::string, 4> streams;
  const auto drain = [&] {
    for (bool any = true; any;) {
      any = sender.end->Poll() || !sender.end->link->writable_fds().empty();
      for (size_t i = 0; i < 4; ++i) streams[i] += ReadAll(sender.sockets[i]);
    }
  };
  drain();
  std::array<size_t, 4> greeted;
  for (size_t i = 0; i < 4; ++i) greeted[i] = streams[i].size();
  std::vector<std::byte> source(kWindowBytes);
  for (uint64_t i = 0; i < 12; ++i) {
    // Each takes more than a socket does at once, so that all sockets are used.
    sender.end->link->Put(source, 0, Notice{i}, i);
  }
  sender.end->link->Tell("bye");
  drain();
  size_t lost_socket = 0;
  for (size_t i = 1; i < 4; ++i) {
    if (streams[i].size() > greeted[i]) lost_socket = i;
  }
  ASSERT_GT(lost_socket, 0u);
  streams[lost_socket].resize(greeted[lost_socket]);
  for (size_t i = 0; i < 4; ++i) receiver.Feed(streams[i], i);
  EXPECT_EQ(receiver.end->told, std::vector<std::string>{"bye"});
  receiver.Cut();
  EXPECT_EQ(receiver.end->end.code(), StatusCode::kUnavailable);
  EXPECT_NE(receiver.end->end.message().find("messages that it had sent did not arrive"),
            std::string::npos)
      << receiver.end->end.message();
  EXPECT_EQ(receiver.end->link->missing_puts(), 12 - receiver.end->notices.size());
  EXPECT_GT(receiver.end->link->missing_puts(), 0u);
}

// --- libcrypto ----------------------------------------------------------------------------------

TEST(CryptoTest, ALibraryThatIsMissingOrAnotherOneIsAReasonAndNoCrash) {
  const auto missing = crypto::LoadFrom("libjaxcoll_no_such_library.so");
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.status().code(), StatusCode::kUnavailable);
  EXPECT_NE(missing.status().message().find("libjaxcoll_no_such_library.so"), std::string::npos);
  EXPECT_NE(missing.status().message().find("install OpenSSL's libcrypto"), std::string::npos);
  const auto other = crypto::LoadFrom("libc.so.6");
  ASSERT_FALSE(other.ok());
  EXPECT_NE(other.status().message().find("libc.so.6 lacks EVP_aes_128_gcm"), std::string::npos)
      << other.status().message();
}

TEST(CryptoTest, WithoutALibraryNoLinkIsMadeAndTheReasonSaysWhatToInstall) {
  const StatusOr<crypto::LibCrypto> none(
      Status(StatusCode::kUnavailable, "libcrypto cannot be loaded (x); install it"));
  crypto::UseForTests(&none);
  auto [socket, other] = SocketPair(SOCK_STREAM);
  const auto link =
      MakeTcpLink(7, {socket.release()}, kWindowBytes, TestSecurity(LinkKind::kTcp, true), "test");
  crypto::UseForTests(nullptr);
  ASSERT_FALSE(link.ok());
  EXPECT_EQ(link.status().message(),
            "tcp cannot be used, for it authenticates what it sends: libcrypto cannot be loaded "
            "(x); install it");
  char byte;
  EXPECT_EQ(recv(other.get(), &byte, 1, 0), 0);  // the socket was closed
}

TEST(CryptoTest, AKeyOfAnotherSizeIsRefused) {
  auto [socket, other] = SocketPair(SOCK_STREAM);
  const auto link =
      MakeTcpLink(7, {socket.release()}, kWindowBytes, {"short", true, false}, "test");
  ASSERT_FALSE(link.ok());
  EXPECT_EQ(link.status().code(), StatusCode::kInvalidArgument);
}

// A library that fails later, as where a system's policy forbids what it is asked for.
TEST(CryptoTest, ALibraryThatFailsEndsTheLink) {
  static bool fails = false;
  StatusOr<crypto::LibCrypto> failing = **crypto::Load();
  static auto* const real = failing->encrypt_final;
  failing->encrypt_final = [](crypto::CipherContext* context, unsigned char* out, int* bytes) {
    return fails ? 0 : real(context, out, bytes);
  };
  crypto::UseForTests(&failing);
  Victim victim(LinkKind::kTcp, true);
  crypto::UseForTests(nullptr);
  victim.end->Poll();
  EXPECT_TRUE(victim.end->end.ok());
  fails = true;
  victim.end->link->Put({}, 0, Notice{1}, 0);
  victim.end->Poll();
  fails = false;
  EXPECT_EQ(victim.end->end.code(), StatusCode::kInternal);
  EXPECT_NE(victim.end->end.message().find("libcrypto failed"), std::string::npos);
  victim.end.reset();
}

}  // namespace
}  // namespace jaxcoll
