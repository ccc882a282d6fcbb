#include "comm/listing.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <utility>

#include "comm/words.h"

namespace jaxcoll {
namespace {

constexpr size_t kDigestChars = 8;
constexpr size_t kDigestsPerAnswer = 512;
constexpr size_t kLineChars = 400;  // of a line's text that crosses the wire

std::string Digest(std::string_view line) {
  const uint64_t hash = Hash(line.substr(0, line.rfind(" @ ")));
  char text[kDigestChars + 1];
  std::snprintf(text, sizeof(text), "%08x", static_cast<unsigned>(hash ^ hash >> 32));
  return text;
}

}  // namespace

void Listings::Add(const std::string& program, Listing listing) {
  if (Find(program) != nullptr) return;
  Entry entry{program, std::move(listing)};
  for (const std::string& line : entry.listing.lines) {
    entry.bytes += sizeof(std::string) + line.size();
  }
  bytes_ += entry.bytes;
  entries_.push_front(std::move(entry));
  by_program_[program] = entries_.begin();
  while (bytes_ > kMaxBytes && entries_.size() > 1) {
    bytes_ -= entries_.back().bytes;
    by_program_.erase(entries_.back().program);
    entries_.pop_back();
  }
}

const Listing* Listings::Find(const std::string& program) {
  const auto it = by_program_.find(program);
  if (it == by_program_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, it->second);
  return &it->second->listing;
}

std::string Listings::Answer(std::string_view question) {
  Words words(question);
  const std::string_view kind = words.Next();
  const std::string program(words.Next());
  const size_t first = words.NextNumber().value_or(0);
  const Listing* const listing = Find(program);
  const size_t total = listing == nullptr ? 0 : listing->lines.size();
  const std::string about = program + ' ' + std::to_string(first) + ' ';
  if (kind == "digests?") {
    std::string answer = "digests " + about + std::to_string(total) + ' ';
    for (size_t i = first; i < std::min(total, first + kDigestsPerAnswer); ++i) {
      answer += Digest(listing->lines[i]);
    }
    return answer;
  }
  if (kind == "line?") {
    return "line " + about + (first < total ? listing->lines[first].substr(0, kLineChars) : "");
  }
  return "";
}

std::string Comparison::Question() const {
  return (line_ ? "line? " : "digests? ") + theirs_ + ' ' + std::to_string(line_.value_or(next_));
}

std::string Comparison::OnAnswer(std::string_view answer, const Listing& own) {
  Words words(answer);
  const std::string_view kind = words.Next();
  if (done_ || words.Next() != theirs_) return "";
  const std::optional<size_t> first = words.NextNumber();
  if (kind == "line") {
    if (!line_ || first != line_) return "";
    text_there_ = words.Rest();
    done_ = true;
    return "";
  }
  if (line_ || first != next_) return "";
  const size_t total = words.NextNumber().value_or(0);
  std::string_view digests = words.Rest();
  if (total == 0) done_ = true;  // the peer has forgotten it
  while (!done_ && !line_) {
    const bool here = next_ < own.lines.size(), there = next_ < total;
    if (!here && !there) {
      done_ = true;
    } else if (!here || !there) {
      line_ = next_;
    } else if (digests.size() < kDigestChars) {
      if (next_ == *first) done_ = true;  // no progress: not an honest answer
      break;
    } else if (digests.substr(0, kDigestChars) != Digest(own.lines[next_])) {
      line_ = next_;
    } else {
      digests.remove_prefix(kDigestChars);
      ++next_;
    }
  }
  if (done_) return "";
  if (line_ && *line_ < own.lines.size()) text_here_ = own.lines[*line_].substr(0, kLineChars);
  return Question();
}

}  // namespace jaxcoll
