// The protection of one direction of a socket: a tag after every record (see frame.h) and, on
// request, encryption.
//
//   link key    32 bytes, which the handshake derives from the job's secret and all that both sides
//               said, their nonces included (jaxcoll/_job/handshake.py)
//   chain       HMAC-SHA256(link key, "jaxcoll tcp", encrypted?, from the client?, socket)
//   key         the first half of HMAC-SHA256(chain, "key"), for AES-128-GCM
//   next chain  HMAC-SHA256(chain, "next"), after kRecordsPerKey records
//   nonce       the number of the record in its direction, which does not travel
//
// So every socket, direction and mode has its own key, no key sees a nonce twice, and a record that
// was altered, repeated, dropped, moved or injected fails its check. Without encryption the whole
// record is GCM's associated data, which makes it the MAC called GMAC.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "transport/crypto.h"
#include "transport/link.h"

namespace jaxcoll {

// Thread rule: that of the link.
class RecordSeal {
 public:
  // At 64 KiB a record, 64 GiB: far below the 2^36 bytes and 2^32 records that GCM allows for one
  // message and for one key, so that an attacker gains nothing by observing more messages.
  static constexpr uint64_t kRecordsPerKey = uint64_t{1} << 20;
  // A larger payload is cut: the receiver checks a piece while the next one is on its way.
  static constexpr size_t kPieceBytes = size_t{64} << 10;

  // For what this side sends, or what comes. Fails where there is no libcrypto.
  static StatusOr<std::unique_ptr<RecordSeal>> Make(const TcpSecurity& security,
                                                    uint64_t socket_index, bool sends);

  size_t tag_bytes() const { return gcm_ ? crypto::kTagBytes : 0; }
  size_t piece_bytes() const { return gcm_ ? kPieceBytes : SIZE_MAX / 2; }
  bool encrypts() const { return encrypts_; }

  // Writes the tag of the next record to `tag`; of its bytes, those after the first `clear_bytes`
  // are encrypted to `to`, if this side encrypts. False if libcrypto fails.
  [[nodiscard]] bool Seal(std::span<const std::byte> record, size_t clear_bytes, std::byte* to,
                          std::byte* tag);
  // Checks the next record, and decrypts it in place. False if it was altered: then nothing of it
  // may be used.
  [[nodiscard]] bool Open(std::span<std::byte> record, size_t clear_bytes, const std::byte* tag);

  uint64_t records() const { return records_; }  // so far

 private:
  RecordSeal() = default;
  [[nodiscard]] bool NextNonce(crypto::Nonce& nonce);

  const crypto::LibCrypto* library_ = nullptr;
  std::optional<crypto::Gcm> gcm_;  // none: plain
  bool encrypts_ = false;
  crypto::Secret chain_{};
  uint64_t records_ = 0;
};

}  // namespace jaxcoll
