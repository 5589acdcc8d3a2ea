// The parts of the module, each in the file of its name.
#pragma once

#include <nanobind/nanobind.h>

namespace rtp {

void bind_array(nanobind::module_& module);
void bind_decoder(nanobind::module_& module);
void bind_digest(nanobind::module_& module);
void bind_elementwise(nanobind::module_& module);
void bind_experts(nanobind::module_& module);
void bind_gemm(nanobind::module_& module);
void bind_isa(nanobind::module_& module);
void bind_paged(nanobind::module_& module);
void bind_probe(nanobind::module_& module);
void bind_routing(nanobind::module_& module);
void bind_sublayer(nanobind::module_& module);
void bind_sampling(nanobind::module_& module);
void bind_shared(nanobind::module_& module);
void bind_team(nanobind::module_& module);

}  // namespace rtp
