#include "comm/difference.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "comm/words.h"

namespace jaxcoll {
namespace {

// Longer values are shown by their beginning and a hash.
constexpr size_t kMaxValueChars = 160;
constexpr size_t kMaxParts = 32;

std::string Hex(uint64_t number) {
  char text[20];
  std::snprintf(text, sizeof(text), "%llx", static_cast<unsigned long long>(number));
  return text;
}

std::string Field(std::string_view value, size_t most = kMaxValueChars) {
  std::string text(value.substr(0, most));
  for (char& c : text) {
    if (c < ' ' || c > '~') c = ' ';
  }
  if (value.size() > most || text != value) text += "... (" + Hex(Hash(value)) + ')';
  return text;
}

std::string Join(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < names.size(); ++i) {
    text += (i == 0 ? "" : i + 1 == names.size() ? " and " : ", ") + names[i];
  }
  return text;
}

// "`mul float32[8] 2.0:float32[]` (train.py:12)"
std::string Quoted(const std::string& line) {
  if (line.empty()) return "nothing more";
  const size_t at = line.rfind(" @ ");
  std::string text = line.substr(0, at);
  text.erase(0, text.find_first_not_of(' '));
  if (text.size() > kMaxValueChars) text = text.substr(0, kMaxValueChars) + "...";
  text = '`' + text + '`';
  if (at != line.npos && at + 3 < line.size()) text += " (" + line.substr(at + 3) + ')';
  return text;
}

}  // namespace

std::string Encode(const WaitingCall& call) {
  std::string line = Hex(call.id.key) + '\t' + std::to_string(call.id.number) + '\t' +
                     Hex(call.communicator) + '\t' + Hex(call.instruction) + '\t' +
                     std::to_string(static_cast<int64_t>(call.since_s * 1000)) + '\t' +
                     (call.serial ? "1" : "0") + '\t' + Field(call.program) + '\t' +
                     Field(call.description, 400) + '\t' + Field(call.operands);
  for (const CallFacts::Part& part : call.parts) {
    line += '\t' + part.name + '=' + Field(part.value);
  }
  return line;
}

std::optional<WaitingCall> DecodeWaitingCall(std::string_view line) {
  Words words(line, '\t');
  const auto key = words.NextNumber(16), number = words.NextNumber();
  const auto communicator = words.NextNumber(16), instruction = words.NextNumber(16);
  const auto since_ms = words.NextNumber(), serial = words.NextNumber();
  if (!key || !number || !communicator || !instruction || !since_ms || !serial) return {};
  WaitingCall call;
  call.id = {*key, static_cast<uint32_t>(*number)};
  call.communicator = *communicator;
  call.instruction = *instruction;
  call.since_s = static_cast<double>(*since_ms) / 1000;
  call.serial = *serial != 0;
  call.program = words.Next();
  call.description = Field(words.Next(), 500);
  call.operands = Field(words.Next());
  while (!words.empty() && call.parts.size() < kMaxParts) {
    Words part(words.Next(), '=');
    const std::string name = Field(part.Next());
    call.parts.push_back({name, std::string(part.Rest())});
  }
  return call;
}

std::vector<std::string> PartsThatDiffer(const WaitingCall& a, const WaitingCall& b) {
  std::vector<std::string> names;
  for (size_t i = 0; i < std::min(a.parts.size(), b.parts.size()); ++i) {
    // One side's values have crossed the wire.
    if (a.parts[i].name != b.parts[i].name ||
        (a.parts[i].value != b.parts[i].value && Field(a.parts[i].value) != b.parts[i].value &&
         a.parts[i].value != Field(b.parts[i].value))) {
      names.push_back(a.parts[i].name);
    }
  }
  return names;
}

std::string DescribeDifference(int here, const WaitingCall& mine, int there,
                               const WaitingCall& theirs, const Comparison* comparison,
                               const Listing* listing) {
  // Words are equal on both sides: the lower process first.
  const bool swap = there < here;
  const WaitingCall &a = swap ? theirs : mine, &b = swap ? mine : theirs;
  const std::string first = "process " + std::to_string(swap ? there : here);
  const std::string second = "process " + std::to_string(swap ? here : there);
  const std::vector<std::string> parts = PartsThatDiffer(a, b);
  const bool algorithm = std::find(parts.begin(), parts.end(), "algorithms") != parts.end();
  const auto named = [&](const WaitingCall& call) {
    return algorithm ? call.description
                     : call.description.substr(0, call.description.rfind(", algorithm "));
  };
  std::string text = first + " waits in " + named(a) + ", " + second + " in ";
  if (!parts.empty()) {
    const bool operands = std::all_of(parts.begin(), parts.end(), [](const std::string& part) {
      return part == "shapes" || part == "dtypes";
    });
    return text + (operands ? "the same of " + b.operands : named(b)) + ": " + Join(parts) +
           " differ";
  }
  if (a.instruction == b.instruction) {
    return text + "the same, as call " + std::to_string(b.id.number) + " and not " +
           std::to_string(a.id.number) + ": one has made it more often than the other";
  }
  if (a.program == b.program) return text + "another, equal call of the same program";
  text += "an equal call of another program";
  if (comparison == nullptr || !comparison->line()) return text;
  const std::string& in_a = swap ? comparison->text_there() : comparison->text_here();
  const std::string& in_b = swap ? comparison->text_here() : comparison->text_there();
  if (*comparison->line() == 0) return text + ": " + Quoted(in_b) + ", not " + Quoted(in_a);
  text += ": line " + std::to_string(*comparison->line() + 1);
  if (listing != nullptr && !listing->name.empty()) text += " of `" + Field(listing->name) + '`';
  return text + " is " + Quoted(in_a) + " in " + first + " and " + Quoted(in_b) + " in " + second +
         " (#: digest of a captured array). A value that differs between processes must be an "
         "argument, unless JAXCOLL_MATCH=order";
}

}  // namespace jaxcoll
