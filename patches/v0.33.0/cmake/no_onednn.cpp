// SPDX-License-Identifier: Apache-2.0
// In place of vLLM's csrc/cpu/dnnl_kernels.cpp, which needs oneDNN's source: the operators that
// torch_bindings.cpp registers, each of which raises. vLLM tries create_onednn_mm_handler once per
// layer and multiplies with PyTorch if it raises; int8 models (W8A8) need the real ones.
#include <torch/all.h>

#include <optional>

using torch::Tensor;

namespace {
[[noreturn]] void refuse() { TORCH_CHECK(false, "this build of the CPU kernels has no oneDNN"); }
}  // namespace

bool is_onednn_acl_supported() { return false; }

int64_t create_onednn_mm_handler(const Tensor&, int64_t) { refuse(); }

void onednn_mm(Tensor&, const Tensor&, const std::optional<Tensor>&, const Tensor&) { refuse(); }

int64_t create_onednn_scaled_mm_handler(const Tensor&, const Tensor&, at::ScalarType, bool, bool,
                                        int64_t) {
  refuse();
}

void onednn_scaled_mm(Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&,
                      const std::optional<Tensor>&, const std::optional<Tensor>&, const Tensor&) {
  refuse();
}

void static_scaled_int8_quant(Tensor&, const Tensor&, const Tensor&,
                              const std::optional<Tensor>&) {
  refuse();
}

void dynamic_scaled_int8_quant(Tensor&, const Tensor&, Tensor&, const std::optional<Tensor>&) {
  refuse();
}

// A handler is never made, so there is none to release.
void release_dnnl_matmul_handler(int64_t) {}
