// The system's libcrypto (OpenSSL 1.1 or later), loaded when it is first needed, for two things:
// HMAC-SHA256, by which keys are derived, and AES-128-GCM. There is no cryptography of our own.
//
// A key of 128 bits is strong enough for the lifetime of a job. Measured (OpenSSL 3.0, Xeon), it
// encrypts 3.4 GB/s, and 2.5 GB/s with 256 bits.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "base/status.h"

namespace jaxcoll::crypto {

constexpr size_t kSecretBytes = 32;  // what keys are derived from
constexpr size_t kAesKeyBytes = 16;
constexpr size_t kNonceBytes = 12;
constexpr size_t kTagBytes = 16;

using Secret = std::array<std::byte, kSecretBytes>;
using Nonce = std::array<std::byte, kNonceBytes>;
using Tag = std::array<std::byte, kTagBytes>;

// OpenSSL's types are opaque here; its functions, as in its manual pages.
struct Cipher;
struct CipherContext;
struct Digest;
struct Engine;

struct LibCrypto {
  const Cipher* (*aes_128_gcm)();
  CipherContext* (*context_new)();
  void (*context_free)(CipherContext* context);
  int (*context_ctrl)(CipherContext* context, int type, int argument, void* data);
  int (*encrypt_init)(CipherContext* context, const Cipher* cipher, Engine* engine,
                      const unsigned char* key, const unsigned char* nonce);
  int (*encrypt_update)(CipherContext* context, unsigned char* out, int* out_bytes,
                        const unsigned char* in, int in_bytes);
  int (*encrypt_final)(CipherContext* context, unsigned char* out, int* out_bytes);
  int (*decrypt_init)(CipherContext* context, const Cipher* cipher, Engine* engine,
                      const unsigned char* key, const unsigned char* nonce);
  int (*decrypt_update)(CipherContext* context, unsigned char* out, int* out_bytes,
                        const unsigned char* in, int in_bytes);
  int (*decrypt_final)(CipherContext* context, unsigned char* out, int* out_bytes);
  const Digest* (*sha256)();
  unsigned char* (*hmac)(const Digest* digest, const void* key, int key_bytes,
                         const unsigned char* data, size_t data_bytes, unsigned char* mac,
                         unsigned int* mac_bytes);
};

// The library, or the reason why it cannot be used and the package to install. Loaded once, never
// unloaded, and tested on a known example before use.
StatusOr<const LibCrypto*> Load();
// For tests: from the file of that name, each time anew.
StatusOr<LibCrypto> LoadFrom(const char* file);
// For tests: what Load() returns from here on instead of the system's; null: the system's again.
void UseForTests(const StatusOr<LibCrypto>* library);

// False if libcrypto fails, as all functions of Gcm: for lack of memory, or where a policy of the
// system forbids it.
[[nodiscard]] bool Hmac(const LibCrypto& library, const Secret& key, std::string_view data,
                        Secret& mac);

// AES-128-GCM under one key. `associated` is authenticated; what is encrypted is authenticated as
// well. A nonce must never be used twice to seal under one key: the caller's duty.
//
// Thread rule: one thread at a time.
class Gcm {
 public:
  Gcm(const LibCrypto& library, bool seals);

  [[nodiscard]] bool SetKey(std::span<const std::byte, kAesKeyBytes> key);
  // `to` may be where `plain` begins, and has its size.
  [[nodiscard]] bool Seal(const Nonce& nonce, std::span<const std::byte> associated,
                          std::span<const std::byte> plain, std::byte* to, std::byte* tag);
  // Decrypts in place. False if anything was altered: then the content of `sealed` is undefined.
  [[nodiscard]] bool Open(const Nonce& nonce, std::span<const std::byte> associated,
                          std::span<std::byte> sealed, const std::byte* tag);

 private:
  const LibCrypto& library_;
  const bool seals_;
  const std::unique_ptr<CipherContext, void (*)(CipherContext*)> context_;
};

}  // namespace jaxcoll::crypto
