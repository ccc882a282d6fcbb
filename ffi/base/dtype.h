// Element types and reduce operations, by the names JAX and NumPy give them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace jaxcoll {

// Sub-byte types (int4, float4) are widened by the lowering and never arrive here.
enum class DType : uint8_t {
  kBool,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kUint8,
  kUint16,
  kUint32,
  kUint64,
  kFloat8E3M4,
  kFloat8E4M3,
  kFloat8E4M3B11Fnuz,
  kFloat8E4M3Fn,
  kFloat8E4M3Fnuz,
  kFloat8E5M2,
  kFloat8E5M2Fnuz,
  kFloat8E8M0Fnu,
  kFloat16,
  kBFloat16,
  kFloat32,
  kFloat64,
  kComplex64,
  kComplex128,
};
inline constexpr int kDTypeCount = static_cast<int>(DType::kComplex128) + 1;

// mean is sum followed by a division that XLA fuses with its surroundings: not an engine operation.
enum class ReduceOp : uint8_t { kSum, kProd, kMin, kMax, kAnd, kOr, kXor };
inline constexpr int kReduceOpCount = static_cast<int>(ReduceOp::kXor) + 1;

size_t ItemBytes(DType dtype);
std::string_view Name(DType dtype);  // "float32", "float8_e4m3fn", ...
std::string_view Name(ReduceOp op);  // "sum", ...
std::optional<DType> ParseDType(std::string_view name);
std::optional<ReduceOp> ParseReduceOp(std::string_view name);

// and, or, xor: integers and bool. min, max: all but complex. sum, prod: all but bool.
bool Supports(DType dtype, ReduceOp op);

}  // namespace jaxcoll
