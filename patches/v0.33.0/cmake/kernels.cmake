# SPDX-License-Identifier: Apache-2.0
# What vLLM 0.33.0's CPU build needs beside scripts/cmake/cpu_kernels.cmake; takes its place in
# CMAKE_PROJECT_vllm_extensions_INCLUDE.
include("${SERIES_CMAKE}/cpu_kernels.cmake")

# The AVX2 target compiles dnnl_kernels.cpp and links dnnl_ext, which need oneDNN's own source. Its
# operators are registered whether or not they are built, so a file that refuses takes their place;
# vLLM then multiplies with PyTorch.
#
# The target's sources define the same names in several files, so they are compiled one by one; what
# they share, PyTorch's headers, is compiled once.
function(without_onednn)
  get_target_property(sources _C_AVX2 SOURCES)
  list(FILTER sources EXCLUDE REGEX "dnnl_kernels")
  set_property(TARGET _C_AVX2 PROPERTY SOURCES "${sources}" "${SERIES_BASE_CMAKE}/no_onednn.cpp")
  get_target_property(libraries _C_AVX2 LINK_LIBRARIES)
  list(REMOVE_ITEM libraries dnnl_ext)
  set_property(TARGET _C_AVX2 PROPERTY LINK_LIBRARIES "${libraries}")
  set_property(TARGET _C_AVX2 PROPERTY UNITY_BUILD OFF)
  target_precompile_headers(_C_AVX2 PRIVATE <torch/all.h>)
endfunction()
cmake_language(DEFER CALL without_onednn)
