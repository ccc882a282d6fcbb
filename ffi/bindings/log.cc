#include "base/log.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

#include <string>

#include "bindings/bindings.h"

namespace nb = nanobind;

namespace jaxcoll {

void BindLog(nb::module_& m) {
  m.def("log_lines", &LogLines, nb::arg("level"), nb::arg("text"),
        "A message as the log has it, with time, level, host and process at each line's head.");
  m.def("log_to_file", &WriteToLogFile, nb::call_guard<nb::gil_scoped_release>(), nb::arg("lines"),
        "Appends what `log_lines` has made to the file of JAXCOLL_LOG_FILE; False: there is none.");
  m.def("log_process", &SetLogProcess, nb::call_guard<nb::gil_scoped_release>(), nb::arg("index"),
        nb::arg("count"), "Tells the log this process's index in its job.");
  m.def(
      "log_open", [] { return OpenLogFile().message(); }, nb::call_guard<nb::gil_scoped_release>(),
      "Opens the log's file, unless its name waits for the process's index; why it cannot, or "
      "\"\".");
}

}  // namespace jaxcoll
