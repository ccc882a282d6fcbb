// Texts that processes send each other: words separated by single spaces.
#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace jaxcoll {

// FNV-1a: equal on every process, whatever its compiler.
inline uint64_t Hash(std::string_view text, uint64_t seed = 14695981039346656037ull) {
  for (const char c : text) seed = (seed ^ static_cast<unsigned char>(c)) * 1099511628211ull;
  return seed;
}

class Words {
 public:
  explicit Words(std::string_view text, char separator = ' ')
      : rest_(text), separator_(separator) {}
  std::string_view Next() {
    const size_t end = rest_.find(separator_);
    const std::string_view word = rest_.substr(0, end);
    rest_.remove_prefix(end == rest_.npos ? rest_.size() : end + 1);
    return word;
  }
  // Nullopt for a word that is not a number of this base.
  std::optional<uint64_t> NextNumber(int base = 10) {
    const std::string_view word = Next();
    uint64_t number = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number, base);
    if (error != std::errc() || end != word.data() + word.size() || word.empty()) return {};
    return number;
  }
  std::string_view Rest() const { return rest_; }
  bool empty() const { return rest_.empty(); }

 private:
  std::string_view rest_;
  const char separator_;
};

}  // namespace jaxcoll
