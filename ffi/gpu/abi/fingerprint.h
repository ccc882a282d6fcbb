// Distinguishes calls where ranks synchronise; it is not a protection against attackers.
#pragma once

#include <cstdint>
#include <string_view>

namespace jaxcoll::cuda {

// FNV-1a.
class Fingerprint {
 public:
  void Add(int64_t value) {
    for (int byte = 0; byte < 8; ++byte) AddByte(static_cast<uint64_t>(value) >> (8 * byte));
  }
  void Add(std::string_view text) {
    for (const char c : text) AddByte(static_cast<unsigned char>(c));
  }
  uint64_t Value() const { return hash_; }
  // Never 0, the initial value of flags.
  uint32_t Value32() const { return static_cast<uint32_t>(hash_ ^ hash_ >> 32) | 1; }

 private:
  void AddByte(uint64_t byte) { hash_ = (hash_ ^ (byte & 0xff)) * 0x100000001b3; }
  uint64_t hash_ = 0xcbf29ce484222325;
};

}  // namespace jaxcoll::cuda
