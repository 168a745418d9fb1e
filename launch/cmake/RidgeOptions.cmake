# Compiler, warnings, sanitizers, cache.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_C_COMPILER_LAUNCHER ${CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
endif()

add_library(ridge_warnings INTERFACE)
target_compile_options(ridge_warnings INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Werror -Wno-unknown-warning-option -Wno-psabi>
  $<$<COMPILE_LANG_AND_ID:CXX,Clang>:-Wno-pass-failed>  # a simd loop that -O1 does not vectorise is no fault
  # GCC 13 takes a span over shared storage for a reference into a temporary.
  $<$<AND:$<COMPILE_LANG_AND_ID:CXX,GNU>,$<VERSION_GREATER_EQUAL:$<CXX_COMPILER_VERSION>,13>>:-Wno-dangling-reference>
  $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-restrict>)  # false in std::string's operator+ at -O3: GCC bug 105651

add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fno-math-errno> $<$<COMPILE_LANGUAGE:CXX>:-fno-trapping-math>
                    $<$<COMPILE_LANGUAGE:CXX>:-fopenmp-simd>)
if(RIDGE_NATIVE)
  # 512-bit vectors: GCC prefers 256 even where the core runs full-width ones.
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-march=native> $<$<COMPILE_LANGUAGE:CXX>:-mprefer-vector-width=512>)
endif()
if(RIDGE_SANITIZE)
  # Instrumented code misleads GCC's analysis: bug 105562.
  target_compile_options(ridge_warnings INTERFACE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-maybe-uninitialized>)
  add_compile_options($<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=${RIDGE_SANITIZE}>
                      $<$<COMPILE_LANGUAGE:C,CXX>:-fno-omit-frame-pointer>)
  add_link_options(-fsanitize=${RIDGE_SANITIZE})
endif()
