// A call, part by part: where two processes wait for each other in different calls, the parts say
// how these differ.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace jaxcoll {

struct CallFacts {
  struct Part {
    std::string name;   // in the plural, for "shapes differ"
    std::string value;  // equal on every process that makes the same call
    friend bool operator==(const Part&, const Part&) = default;
  };
  std::vector<Part> parts;
  std::string operands;     // "float32[1000]": what follows "the same of" in a message
  std::string program;      // its fingerprint
  int64_t bytes = 0;        // of one rank's operands
  std::string instruction;  // equal on every process, whatever shapes the instruction runs with
  // Whether the program has several devices of this process. JAX runs such programs one after the
  // other, so while a call of one waits no call of another can begin.
  bool serial = false;
};

}  // namespace jaxcoll
