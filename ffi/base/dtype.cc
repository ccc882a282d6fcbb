#include "base/dtype.h"

#include <array>

namespace jaxcoll {
namespace {

enum class Kind : uint8_t { kBool, kInteger, kFloat, kComplex };

struct Traits {
  std::string_view name;
  uint8_t item_bytes;
  Kind kind;
};

// In the order of DType.
constexpr std::array<Traits, kDTypeCount> kTraits = {{
    {"bool", 1, Kind::kBool},
    {"int8", 1, Kind::kInteger},
    {"int16", 2, Kind::kInteger},
    {"int32", 4, Kind::kInteger},
    {"int64", 8, Kind::kInteger},
    {"uint8", 1, Kind::kInteger},
    {"uint16", 2, Kind::kInteger},
    {"uint32", 4, Kind::kInteger},
    {"uint64", 8, Kind::kInteger},
    {"float8_e3m4", 1, Kind::kFloat},
    {"float8_e4m3", 1, Kind::kFloat},
    {"float8_e4m3b11fnuz", 1, Kind::kFloat},
    {"float8_e4m3fn", 1, Kind::kFloat},
    {"float8_e4m3fnuz", 1, Kind::kFloat},
    {"float8_e5m2", 1, Kind::kFloat},
    {"float8_e5m2fnuz", 1, Kind::kFloat},
    {"float8_e8m0fnu", 1, Kind::kFloat},
    {"float16", 2, Kind::kFloat},
    {"bfloat16", 2, Kind::kFloat},
    {"float32", 4, Kind::kFloat},
    {"float64", 8, Kind::kFloat},
    {"complex64", 8, Kind::kComplex},
    {"complex128", 16, Kind::kComplex},
}};

// In the order of ReduceOp.
constexpr std::array<std::string_view, kReduceOpCount> kOpNames = {"sum", "prod", "min", "max",
                                                                   "and", "or",   "xor"};

const Traits& TraitsOf(DType dtype) { return kTraits[static_cast<size_t>(dtype)]; }

}  // namespace

size_t ItemBytes(DType dtype) { return TraitsOf(dtype).item_bytes; }

std::string_view Name(DType dtype) { return TraitsOf(dtype).name; }

std::string_view Name(ReduceOp op) { return kOpNames[static_cast<size_t>(op)]; }

std::optional<DType> ParseDType(std::string_view name) {
  for (size_t i = 0; i < kTraits.size(); ++i) {
    if (kTraits[i].name == name) return static_cast<DType>(i);
  }
  return std::nullopt;
}

std::optional<ReduceOp> ParseReduceOp(std::string_view name) {
  for (size_t i = 0; i < kOpNames.size(); ++i) {
    if (kOpNames[i] == name) return static_cast<ReduceOp>(i);
  }
  return std::nullopt;
}

bool Supports(DType dtype, ReduceOp op) {
  const Kind kind = TraitsOf(dtype).kind;
  switch (op) {
    case ReduceOp::kSum:
    case ReduceOp::kProd:
      return kind != Kind::kBool;
    case ReduceOp::kMin:
    case ReduceOp::kMax:
      return kind != Kind::kComplex;
    case ReduceOp::kAnd:
    case ReduceOp::kOr:
    case ReduceOp::kXor:
      return kind == Kind::kBool || kind == Kind::kInteger;
  }
  return false;
}

}  // namespace jaxcoll
