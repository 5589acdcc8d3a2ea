#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "isa.h"
#include "team.h"

namespace rtp {

void bind_isa(nanobind::module_& module) {
  module.def("isa", &isa_name);
  module.def("supported_isas", &supported_isas);
  module.def("set_isa", &set_isa, nanobind::arg("name"));
}

void bind_team(nanobind::module_& module) {
  module.def("num_threads", &num_threads);
  module.def("set_num_threads", &set_num_threads, nanobind::arg("count"));
}

}  // namespace rtp

NB_MODULE(_C, module) {
  rtp::bind_isa(module);
  rtp::bind_team(module);
  rtp::bind_array(module);
  rtp::bind_digest(module);
  rtp::bind_elementwise(module);
  rtp::bind_gemm(module);
  rtp::bind_experts(module);
  rtp::bind_paged(module);
  rtp::bind_probe(module);
  rtp::bind_sublayer(module);
  rtp::bind_decoder(module);
  rtp::bind_sampling(module);
  rtp::bind_shared(module);
  rtp::bind_routing(module);
}
