#include "base/kernels.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bindings/bindings.h"

namespace nb = nanobind;

namespace jaxcoll {
namespace {

// NumPy has no exchange format for float8 and bfloat16, so elements travel as raw bytes.
using ByteArray = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ConstByteArray = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

[[noreturn]] void Refuse(const std::string& message) { throw nb::value_error(message.c_str()); }

DType DTypeOf(std::string_view name) {
  const std::optional<DType> dtype = ParseDType(name);
  if (!dtype) Refuse("unknown dtype '" + std::string(name) + "'; see dtype_names()");
  return *dtype;
}

ReduceOp ReduceOpOf(std::string_view name, DType dtype) {
  const std::optional<ReduceOp> op = ParseReduceOp(name);
  if (!op || !Supports(dtype, *op)) {
    Refuse("'" + std::string(name) + "' is not a reduce op of " + std::string(Name(dtype)) +
           "; see reduce_ops()");
  }
  return *op;
}

Isa IsaOf(std::string_view name) {
  for (int i = 0; i <= static_cast<int>(BestIsa()); ++i) {
    if (Name(static_cast<Isa>(i)) == name) return static_cast<Isa>(i);
  }
  Refuse("'" + std::string(name) + "' does not run here; see kernel_isas()");
}

void KernelReduce(std::vector<ByteArray> destinations, std::vector<ConstByteArray> sources,
                  std::string_view dtype_name, std::string_view op_name, bool streaming,
                  std::optional<std::string_view> isa) {
  const DType dtype = DTypeOf(dtype_name);
  const ReduceOp op = ReduceOpOf(op_name, dtype);
  if (sources.empty()) Refuse("needs at least one source");
  const size_t byte_count = sources[0].size();
  if (byte_count % ItemBytes(dtype) != 0) {
    Refuse(std::to_string(byte_count) + " bytes are not a whole number of " +
           std::string(dtype_name));
  }
  std::vector<const void*> source_pointers;
  for (const ConstByteArray& source : sources) {
    if (source.size() != byte_count) Refuse("sources differ in size");
    source_pointers.push_back(source.data());
  }
  std::vector<void*> destination_pointers;
  for (ByteArray& destination : destinations) {
    if (destination.size() != byte_count) Refuse("destinations and sources differ in size");
    destination_pointers.push_back(destination.data());
  }
  ReduceWith(isa ? IsaOf(*isa) : KernelIsa(), destination_pointers, source_pointers,
             byte_count / ItemBytes(dtype), dtype, op,
             streaming ? Caching::kStreaming : Caching::kCached);
}

}  // namespace

void BindKernels(nb::module_& m) {
  // noconvert: a converted destination would be a copy that nobody sees.
  m.def("kernel_reduce", &KernelReduce, nb::arg("destinations").noconvert(),
        nb::arg("sources").noconvert(), nb::arg("dtype"), nb::arg("op"),
        nb::arg("streaming") = false, nb::arg("isa") = nb::none(),
        "Sets every destination to sources[0] op sources[1] op ..., elementwise.\n\n"
        "All are one-dimensional uint8 arrays of one size, views of arrays of `dtype`. A\n"
        "destination may be a source. Raises ValueError for what the kernels do not serve.");
  m.def(
      "kernel_isa", [] { return Name(KernelIsa()); },
      "The instruction set that the kernels use: portable, avx2 or avx512.");
  m.def(
      "kernel_isas",
      [] {
        std::vector<std::string_view> names;
        for (int i = 0; i <= static_cast<int>(BestIsa()); ++i) {
          names.push_back(Name(static_cast<Isa>(i)));
        }
        return names;
      },
      "The instruction sets that run on this machine.");
  m.def(
      "dtype_names",
      [] {
        std::vector<std::string_view> names;
        for (int i = 0; i < kDTypeCount; ++i) names.push_back(Name(static_cast<DType>(i)));
        return names;
      },
      "Every dtype that collectives take, by NumPy's name.");
  m.def(
      "reduce_ops",
      [](std::string_view dtype_name) {
        const DType dtype = DTypeOf(dtype_name);
        std::vector<std::string_view> names;
        for (int i = 0; i < kReduceOpCount; ++i) {
          const ReduceOp op = static_cast<ReduceOp>(i);
          if (Supports(dtype, op)) names.push_back(Name(op));
        }
        return names;
      },
      nb::arg("dtype"), "The reduce ops that `dtype` has.");
}

}  // namespace jaxcoll
