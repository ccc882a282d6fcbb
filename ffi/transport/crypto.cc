#include "transport/crypto.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <type_traits>

namespace jaxcoll::crypto {
namespace {

constexpr const char* kInstall =
    "install OpenSSL's libcrypto: the package libssl3 (Debian, Ubuntu), openssl-libs (Fedora, "
    "RHEL) "
    "or openssl (conda)";

// Newest first. Where Python or its environment has brought one of these, it is found by its name.
constexpr const char* kFiles[] = {"libcrypto.so.3", "libcrypto.so.4", "libcrypto.so.1.1"};

// Constants of openssl/evp.h.
constexpr int kCtrlGetTag = 0x10;
constexpr int kCtrlSetTag = 0x11;

// OpenSSL counts in int.
constexpr size_t kUpdateBytesMax = size_t{1} << 30;

const unsigned char* Bytes(const std::byte* bytes) {
  return reinterpret_cast<const unsigned char*>(bytes);
}
unsigned char* Bytes(std::byte* bytes) { return reinterpret_cast<unsigned char*>(bytes); }

using Update = int (*)(CipherContext*, unsigned char*, int*, const unsigned char*, int);

bool UpdateAll(Update update, CipherContext* context, std::byte* to,
               std::span<const std::byte> from) {
  while (!from.empty()) {
    const size_t count = std::min(from.size(), kUpdateBytesMax);
    int out_bytes = 0;
    if (update(context, to == nullptr ? nullptr : Bytes(to), &out_bytes, Bytes(from.data()),
               static_cast<int>(count)) != 1) {
      return false;
    }
    from = from.subspan(count);
    if (to != nullptr) to += count;
  }
  return true;
}

// Test case 4 of the GCM specification (McGrew and Viega), and test case 2 of RFC 4231 with a key
// that is filled up with zeros, as HMAC itself does.
bool Works(const LibCrypto& library) {
  constexpr unsigned char kKey[] = {0xfe, 0xff, 0xe9, 0x92, 0x86, 0x65, 0x73, 0x1c,
                                    0x6d, 0x6a, 0x8f, 0x94, 0x67, 0x30, 0x83, 0x08};
  constexpr unsigned char kNonce[] = {0xca, 0xfe, 0xba, 0xbe, 0xfa, 0xce,
                                      0xdb, 0xad, 0xde, 0xca, 0xf8, 0x88};
  constexpr unsigned char kAssociated[] = {0xfe, 0xed, 0xfa, 0xce, 0xde, 0xad, 0xbe,
                                           0xef, 0xfe, 0xed, 0xfa, 0xce, 0xde, 0xad,
                                           0xbe, 0xef, 0xab, 0xad, 0xda, 0xd2};
  constexpr unsigned char kPlain[] = {
      0xd9, 0x31, 0x32, 0x25, 0xf8, 0x84, 0x06, 0xe5, 0xa5, 0x59, 0x09, 0xc5, 0xaf, 0xf5, 0x26,
      0x9a, 0x86, 0xa7, 0xa9, 0x53, 0x15, 0x34, 0xf7, 0xda, 0x2e, 0x4c, 0x30, 0x3d, 0x8a, 0x31,
      0x8a, 0x72, 0x1c, 0x3c, 0x0c, 0x95, 0x95, 0x68, 0x09, 0x53, 0x2f, 0xcf, 0x0e, 0x24, 0x49,
      0xa6, 0xb5, 0x25, 0xb1, 0x6a, 0xed, 0xf5, 0xaa, 0x0d, 0xe6, 0x57, 0xba, 0x63, 0x7b, 0x39};
  constexpr unsigned char kTag[] = {0x5b, 0xc9, 0x4f, 0xbc, 0x32, 0x21, 0xa5, 0xdb,
                                    0x94, 0xfa, 0xe9, 0x5a, 0xe7, 0x12, 0x1a, 0x47};
  constexpr unsigned char kMac[] = {0x5b, 0xdc, 0xc1, 0x46, 0xbf, 0x60, 0x75, 0x4e,
                                    0x6a, 0x04, 0x24, 0x26, 0x08, 0x95, 0x75, 0xc7};
  Nonce nonce;
  std::memcpy(nonce.data(), kNonce, sizeof(kNonce));
  std::array<std::byte, sizeof(kPlain)> text;
  std::memcpy(text.data(), kPlain, sizeof(kPlain));
  const auto associated = std::as_bytes(std::span(kAssociated));
  Tag tag;
  Gcm seals(library, true), opens(library, false);
  const auto key = std::as_bytes(std::span(kKey));
  if (!seals.SetKey(key) || !opens.SetKey(key)) return false;
  if (!seals.Seal(nonce, associated, text, text.data(), tag.data())) return false;
  if (std::memcmp(tag.data(), kTag, sizeof(kTag)) != 0) return false;
  if (!opens.Open(nonce, associated, text, tag.data())) return false;
  if (std::memcmp(text.data(), kPlain, sizeof(kPlain)) != 0) return false;
  if (!seals.Seal(nonce, associated, text, text.data(), tag.data())) return false;
  tag[15] ^= std::byte{1};
  if (opens.Open(nonce, associated, text, tag.data())) return false;
  Secret mac_key{}, mac;
  std::memcpy(mac_key.data(), "Jefe", 4);
  return Hmac(library, mac_key, "what do ya want for nothing?", mac) &&
         std::memcmp(mac.data(), kMac, sizeof(kMac)) == 0;
}

}  // namespace

StatusOr<LibCrypto> LoadFrom(const char* file) {
  void* const handle = ::dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* const why = ::dlerror();
    return Status(StatusCode::kUnavailable, std::string("libcrypto cannot be loaded (") +
                                                (why == nullptr ? file : why) + "); " + kInstall);
  }
  LibCrypto library{};
  std::string missing;
  const auto find = [&](auto& function, const char* name) {
    void* const symbol = ::dlsym(handle, name);
    if (symbol == nullptr) missing += std::string(missing.empty() ? "" : ", ") + name;
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(symbol);
  };
  find(library.aes_128_gcm, "EVP_aes_128_gcm");
  find(library.context_new, "EVP_CIPHER_CTX_new");
  find(library.context_free, "EVP_CIPHER_CTX_free");
  find(library.context_ctrl, "EVP_CIPHER_CTX_ctrl");
  find(library.encrypt_init, "EVP_EncryptInit_ex");
  find(library.encrypt_update, "EVP_EncryptUpdate");
  find(library.encrypt_final, "EVP_EncryptFinal_ex");
  find(library.decrypt_init, "EVP_DecryptInit_ex");
  find(library.decrypt_update, "EVP_DecryptUpdate");
  find(library.decrypt_final, "EVP_DecryptFinal_ex");
  find(library.sha256, "EVP_sha256");
  find(library.hmac, "HMAC");
  std::string trouble;
  if (!missing.empty()) {
    trouble = " lacks " + missing;
  } else if (!Works(library)) {
    trouble = " computes AES-128-GCM or HMAC-SHA256 wrongly";
  }
  if (trouble.empty()) return library;
  ::dlclose(handle);
  return Status(StatusCode::kUnavailable, file + trouble + "; " + kInstall);
}

namespace {
std::atomic<const StatusOr<LibCrypto>*> for_tests{nullptr};
}

void UseForTests(const StatusOr<LibCrypto>* library) { for_tests = library; }

StatusOr<const LibCrypto*> Load() {
  static const StatusOr<LibCrypto>* const loaded = [] {
    auto* const library = new StatusOr<LibCrypto>(LoadFrom(kFiles[0]));
    for (size_t i = 1; i < std::size(kFiles) && !library->ok(); ++i) {
      if (StatusOr<LibCrypto> other = LoadFrom(kFiles[i]); other.ok()) *library = std::move(other);
    }
    return library;
  }();
  const StatusOr<LibCrypto>* const for_test = for_tests;
  const StatusOr<LibCrypto>& library = for_test == nullptr ? *loaded : *for_test;
  if (!library.ok()) return library.status();
  return &*library;
}

bool Hmac(const LibCrypto& library, const Secret& key, std::string_view data, Secret& mac) {
  unsigned int mac_bytes = 0;
  return library.hmac(library.sha256(), key.data(), static_cast<int>(key.size()),
                      reinterpret_cast<const unsigned char*>(data.data()), data.size(),
                      Bytes(mac.data()), &mac_bytes) != nullptr &&
         mac_bytes == mac.size();
}

Gcm::Gcm(const LibCrypto& library, bool seals)
    : library_(library), seals_(seals), context_(library.context_new(), library.context_free) {}

bool Gcm::SetKey(std::span<const std::byte, kAesKeyBytes> key) {
  const auto init = seals_ ? library_.encrypt_init : library_.decrypt_init;
  return context_ != nullptr &&
         init(context_.get(), library_.aes_128_gcm(), nullptr, Bytes(key.data()), nullptr) == 1;
}

bool Gcm::Seal(const Nonce& nonce, std::span<const std::byte> associated,
               std::span<const std::byte> plain, std::byte* to, std::byte* tag) {
  CipherContext* const context = context_.get();
  int out_bytes = 0;
  unsigned char nothing[kTagBytes];
  return library_.encrypt_init(context, nullptr, nullptr, nullptr, Bytes(nonce.data())) == 1 &&
         UpdateAll(library_.encrypt_update, context, nullptr, associated) &&
         UpdateAll(library_.encrypt_update, context, to, plain) &&
         library_.encrypt_final(context, nothing, &out_bytes) == 1 &&
         library_.context_ctrl(context, kCtrlGetTag, kTagBytes, tag) == 1;
}

bool Gcm::Open(const Nonce& nonce, std::span<const std::byte> associated,
               std::span<std::byte> sealed, const std::byte* tag) {
  CipherContext* const context = context_.get();
  int out_bytes = 0;
  unsigned char nothing[kTagBytes];
  return library_.decrypt_init(context, nullptr, nullptr, nullptr, Bytes(nonce.data())) == 1 &&
         library_.context_ctrl(context, kCtrlSetTag, kTagBytes, const_cast<std::byte*>(tag)) == 1 &&
         UpdateAll(library_.decrypt_update, context, nullptr, associated) &&
         UpdateAll(library_.decrypt_update, context, sealed.data(), sealed) &&
         library_.decrypt_final(context, nothing, &out_bytes) == 1;  // in constant time
}

}  // namespace jaxcoll::crypto
