# The libraries of the house. `ridge_dependencies` carries what the sources include.
include(${CMAKE_CURRENT_LIST_DIR}/RidgeFind.cmake)
find_package(HDF5 REQUIRED COMPONENTS C)

add_library(ridge_dependencies INTERFACE)
target_link_libraries(ridge_dependencies INTERFACE
  fmt::fmt spdlog::spdlog nlohmann_json::nlohmann_json CLI11::CLI11 yaml-cpp protobuf::libprotobuf
  MPI::MPI_C PkgConfig::PCRE2 PkgConfig::UTF8PROC PkgConfig::XXHASH PkgConfig::ZSTD PkgConfig::OPENBLAS
  ${HDF5_C_LIBRARIES} Threads::Threads)
# MPI's C++ bindings are gone from the standard: only the C interface is used.
target_compile_definitions(ridge_dependencies INTERFACE OMPI_SKIP_MPICXX=1)
target_include_directories(ridge_dependencies SYSTEM INTERFACE ${HDF5_C_INCLUDE_DIRS} ${Protobuf_INCLUDE_DIRS})

# Generates NAME.pb.h under build/generated with the source's relative path, and compiles it without our warnings.
function(ridge_add_protos target)
  set(generated ${PROJECT_BINARY_DIR}/generated)
  foreach(proto IN LISTS ARGN)
    file(RELATIVE_PATH relative ${PROJECT_SOURCE_DIR} ${proto})
    string(REGEX REPLACE "\\.proto$" "" stem ${relative})
    set(out ${generated}/${stem}.pb.cc ${generated}/${stem}.pb.h)
    file(MAKE_DIRECTORY ${generated})
    add_custom_command(OUTPUT ${out}
      COMMAND protobuf::protoc --proto_path=${PROJECT_SOURCE_DIR} --cpp_out=${generated} ${relative}
      DEPENDS ${proto} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR} VERBATIM)
    target_sources(${target} PRIVATE ${out})
    set_source_files_properties(${generated}/${stem}.pb.cc PROPERTIES COMPILE_OPTIONS "-w")
  endforeach()
  target_include_directories(${target} SYSTEM PUBLIC $<BUILD_INTERFACE:${generated}>)
endfunction()

# Whether CUDA is wanted and there: AUTO means nvcc and a GPU.
function(ridge_decide_cuda result)
  find_program(RIDGE_NVCC nvcc PATHS /usr/local/cuda/bin)
  find_program(RIDGE_NVIDIA_SMI nvidia-smi)
  if(RIDGE_CUDA STREQUAL "ON" OR (RIDGE_CUDA STREQUAL "AUTO" AND RIDGE_NVCC AND RIDGE_NVIDIA_SMI))
    set(${result} ON PARENT_SCOPE)
  else()
    set(${result} OFF PARENT_SCOPE)
  endif()
endfunction()

# Adds the .cu files in place of cuda_stub.cpp.
function(ridge_add_cuda target)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/core/*.cu ${PROJECT_SOURCE_DIR}/kernels/*.cu
       ${PROJECT_SOURCE_DIR}/parallel/*.cu)
  target_sources(${target} PRIVATE ${sources})
  # nvcc cannot evaluate fmt's compile-time checks.
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-lineinfo;-DFMT_CONSTEVAL=;-DFMT_USE_CONSTEXPR=1;-Xcompiler=-Wall,-Wextra;-Werror=all-warnings>")
  target_link_libraries(${target} PRIVATE CUDA::cudart CUDA::cublas CUDA::cublasLt ${RIDGE_NCCL})
  target_include_directories(${target} SYSTEM PRIVATE ${RIDGE_NCCL_INCLUDE})
  if(RIDGE_CUDNN_FRONTEND)
    target_include_directories(${target} SYSTEM PRIVATE ${RIDGE_CUDNN_FRONTEND} ${RIDGE_CUDNN_INCLUDE})
    target_link_libraries(${target} PRIVATE ${RIDGE_CUDNN} CUDA::nvrtc)
  endif()
endfunction()
