#include "transport/tcp/seal.h"

#include <cstring>

namespace jaxcoll {

StatusOr<std::unique_ptr<RecordSeal>> RecordSeal::Make(const TcpSecurity& security,
                                                       uint64_t socket_index, bool sends) {
  std::unique_ptr<RecordSeal> seal(new RecordSeal);
  if (security.link_key.empty()) return seal;
  if (security.link_key.size() != crypto::kSecretBytes) {
    return InvalidArgument("a link key of " + std::to_string(security.link_key.size()) + " bytes");
  }
  const StatusOr<const crypto::LibCrypto*> library = crypto::Load();
  if (!library.ok()) return library.status();
  seal->library_ = *library;
  seal->encrypts_ = security.encrypt;
  std::string label = "jaxcoll tcp";
  label += static_cast<char>(security.encrypt);
  label += static_cast<char>(security.client == sends);  // from the client to the server
  label.append(reinterpret_cast<const char*>(&socket_index), sizeof(socket_index));
  crypto::Secret link_key;
  std::memcpy(link_key.data(), security.link_key.data(), link_key.size());
  if (!crypto::Hmac(**library, link_key, label, seal->chain_)) {
    return Status(StatusCode::kInternal, "libcrypto cannot compute HMAC-SHA256");
  }
  seal->gcm_.emplace(**library, sends);
  return seal;
}

bool RecordSeal::NextNonce(crypto::Nonce& nonce) {
  if (records_ % kRecordsPerKey == 0) {
    crypto::Secret key;
    if (records_ > 0) {
      const crypto::Secret last = chain_;
      if (!crypto::Hmac(*library_, last, "next", chain_)) return false;
    }
    if (!crypto::Hmac(*library_, chain_, "key", key)) return false;
    if (!gcm_->SetKey(std::span(key).first<crypto::kAesKeyBytes>())) return false;
  }
  nonce = {};
  std::memcpy(nonce.data(), &records_, sizeof(records_));
  ++records_;
  return true;
}

bool RecordSeal::Seal(std::span<const std::byte> record, size_t clear_bytes, std::byte* to,
                      std::byte* tag) {
  if (!gcm_) return true;
  crypto::Nonce nonce;
  if (!NextNonce(nonce)) return false;
  if (!encrypts_) return gcm_->Seal(nonce, record, {}, nullptr, tag);
  return gcm_->Seal(nonce, record.first(clear_bytes), record.subspan(clear_bytes), to, tag);
}

bool RecordSeal::Open(std::span<std::byte> record, size_t clear_bytes, const std::byte* tag) {
  if (!gcm_) return true;
  crypto::Nonce nonce;
  if (!NextNonce(nonce)) return false;
  if (!encrypts_) return gcm_->Open(nonce, record, {}, tag);
  return gcm_->Open(nonce, record.first(clear_bytes), record.subspan(clear_bytes), tag);
}

}  // namespace jaxcoll
