# Fails if the objects of an instruction set define more functions than their one entry point: see
# ffi/base/kernels_isa.h for what would happen. Data is harmless (sanitizers add some).
# Run with -DNM=... -DLIBRARY=...
execute_process(COMMAND ${NM} --defined-only --extern-only ${LIBRARY}
  OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
foreach(isa avx2 avx512)
  string(REGEX MATCH "kernels_${isa}\\.cc\\.o:\n([^:\n]+\n)*" listing "${symbols}")
  string(REGEX MATCHALL " [TWi] [^\n]+" defined "${listing}")
  list(LENGTH defined count)
  if(NOT count EQUAL 1)
    message(FATAL_ERROR "kernels_${isa}.cc defines ${count} external functions, not 1:${defined}")
  endif()
endforeach()
