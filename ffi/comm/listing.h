// A program, line by line, to report where two processes' programs differ.
//Processes compare by queries: "digests? P i" asks for the digests of P's lines from i on, "line? P
// i" for the text of one. Text crosses the wire only for the line that differs.
//
// Thread rule: that of the owner.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <list>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace jaxcoll {

struct Listing {
  std::string name;  // of the program's function
  // "mul float32[8] 2.0:float32[] @ train.py:12": what follows the last " @ " is not part of what
  // is compared. The first line names the function.
  std::vector<std::string> lines;
};

// Listings by fingerprint; the least recently used ones are dropped.
class Listings {
 public:
  void Add(const std::string& program, Listing listing);
  const Listing* Find(const std::string& program);
  // The answer to "digests? ..." or "line? ..."; empty for anything else.
  std::string Answer(std::string_view question);

 private:
  static constexpr size_t kMaxBytes = size_t{16} << 20;
  struct Entry {
    std::string program;
    Listing listing;
    size_t bytes = 0;
  };
  std::list<Entry> entries_;  // the last used one first
  std::unordered_map<std::string, std::list<Entry>::iterator> by_program_;
  size_t bytes_ = 0;
};

// Finds the first line in which a program here and another one at a peer differ.
class Comparison {
 public:
  Comparison(std::string own, std::string theirs)
      : own_(std::move(own)), theirs_(std::move(theirs)) {}

  const std::string& own() const { return own_; }
  const std::string& theirs() const { return theirs_; }
  std::string Question() const;
  // Takes the peer's answer and returns the next question; empty when there is none.
  std::string OnAnswer(std::string_view answer, const Listing& own);
  bool done() const { return done_; }
  // The line that differs, if one was found; a text is empty where a program has no such line.
  std::optional<size_t> line() const { return line_; }
  const std::string& text_here() const { return text_here_; }
  const std::string& text_there() const { return text_there_; }

 private:
  const std::string own_, theirs_;
  size_t next_ = 0;
  std::optional<size_t> line_;
  std::string text_here_, text_there_;
  bool done_ = false;
};

}  // namespace jaxcoll
