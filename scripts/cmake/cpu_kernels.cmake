# SPDX-License-Identifier: Apache-2.0
# Settings for vLLM's own CPU build, included right after its project() call through
# CMAKE_PROJECT_vllm_extensions_INCLUDE, so that no file of vLLM is edited.

# cmake/cpu_extension.cmake refuses g++ before 12.3, which the AMX and AVX512-BF16 targets need. Only
# the AVX2 target is built here, and Debian 12's g++ 12.2 compiles it.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND
   CMAKE_CXX_COMPILER_VERSION VERSION_GREATER_EQUAL 12.0 AND
   CMAKE_CXX_COMPILER_VERSION VERSION_LESS 12.3)
  set(CMAKE_CXX_COMPILER_VERSION 12.3)
endif()

# Without libnuma whether or not this machine has its headers: the result is cached under a key that
# does not know about them, and binding threads to cores is of no use to the AVX2 kernels' purpose.
add_library(numa INTERFACE)
add_compile_definitions(VLLM_NUMA_DISABLED)

# PyTorch is loaded before the kernels are, so they need no path to its libraries; without one the
# binary does not depend on the folder it was built in.
set(CMAKE_SKIP_RPATH ON)

# Assertions keep the name of their file: without the folders of this machine. g++ resolves links in
# the name of a system header where that is shorter, and no map of a linked folder would fit.
cmake_path(GET VLLM_PYTHON_EXECUTABLE PARENT_PATH _environment)
cmake_path(GET _environment PARENT_PATH _environment)
add_compile_options(-fno-canonical-system-headers "-ffile-prefix-map=${_environment}=env"
  "-ffile-prefix-map=${CMAKE_SOURCE_DIR}=vllm" "-ffile-prefix-map=${CMAKE_BINARY_DIR}=build")

# Each of the eight sources spends some 20 s in PyTorch's headers, seven of them little else: those
# seven are compiled as one. cpu_attn.cpp takes as long as all of them and is compiled beside them.
set_source_files_properties(csrc/cpu/cpu_attn.cpp PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
cmake_language(DEFER CALL set_target_properties _C_AVX2 PROPERTIES
  UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 0)
