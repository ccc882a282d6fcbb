// A custom call that does nothing: what jaxcoll/_hlo/overlap.py makes programs longer with.
#include "xla/ffi/api/ffi.h"
#include "xla/handler.h"

namespace jaxcoll {
namespace {

namespace ffi = ::xla::ffi;

ffi::Error DoNothing(ffi::RemainingArgs, ffi::RemainingRets, ffi::Dictionary) {
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER(kDoNothing, DoNothing,
                       ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attrs());

}  // namespace

void* NothingHandler() { return reinterpret_cast<void*>(+kDoNothing); }

}  // namespace jaxcoll
