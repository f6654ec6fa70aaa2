# Finds the libraries under Shoal. Debian packages bring all but libtorch, which comes from its PyPI
# wheel unpacked in SHOAL_DEPS (see tools/install_dependencies).
set(SHOAL_DEPS ${CMAKE_CURRENT_SOURCE_DIR}/.deps CACHE PATH "Folder holding the unpacked libtorch wheel")
find_package(Threads REQUIRED)
find_package(absl REQUIRED)
find_package(Protobuf REQUIRED)
find_package(yaml-cpp REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(MPI REQUIRED COMPONENTS C)
find_package(PkgConfig REQUIRED)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
find_package(OneDNN REQUIRED)

# libtorch, without the wheel's TorchConfig.cmake: that insists on a CUDA toolkit, and its include
# folder shadows protobuf, fmt and oneDNN with copies of other versions. Only the folders that are
# libtorch's own are put on the include path.
set(SHOAL_TORCH ${SHOAL_DEPS}/torch)
if(NOT EXISTS ${SHOAL_TORCH}/lib/libtorch_cpu.so)
  message(FATAL_ERROR "libtorch is not in ${SHOAL_DEPS}: run tools/install_dependencies, "
                      "or pass -DSHOAL_DEPS=<folder that holds torch/>")
endif()
set(shoal_torch_include ${CMAKE_BINARY_DIR}/torch_include)
file(MAKE_DIRECTORY ${shoal_torch_include})
foreach(entry ATen c10 torch caffe2 sleef.h)
  file(CREATE_LINK ${SHOAL_TORCH}/include/${entry} ${shoal_torch_include}/${entry} SYMBOLIC)
endforeach()

# Installed, the same wheel folders lie under lib/shoal (see ShoalInstall.cmake).
add_library(shoal_torch INTERFACE)
set(shoal_torch_prefix $<INSTALL_PREFIX>/${CMAKE_INSTALL_LIBDIR}/shoal/torch)
target_include_directories(shoal_torch SYSTEM INTERFACE
  $<BUILD_INTERFACE:${shoal_torch_include}>
  $<BUILD_INTERFACE:${SHOAL_TORCH}/include/torch/csrc/api/include>
  $<INSTALL_INTERFACE:${shoal_torch_prefix}/include>
  $<INSTALL_INTERFACE:${shoal_torch_prefix}/include/torch/csrc/api/include>)
foreach(library libtorch_cpu.so libc10.so)
  target_link_libraries(shoal_torch INTERFACE
    $<BUILD_INTERFACE:${SHOAL_TORCH}/lib/${library}>
    $<INSTALL_INTERFACE:${shoal_torch_prefix}/lib/${library}>)
endforeach()
target_link_libraries(shoal_torch INTERFACE Threads::Threads)
# Symbols that libtorch_cpu.so takes from the CUDA runtime wheels beside it (its own rpath finds them).
file(GLOB shoal_cuda_runtime_dirs ${SHOAL_DEPS}/nvidia/*/lib)
foreach(dir ${shoal_cuda_runtime_dirs})
  cmake_path(RELATIVE_PATH dir BASE_DIRECTORY ${SHOAL_DEPS} OUTPUT_VARIABLE below)
  target_link_options(shoal_torch INTERFACE
    $<BUILD_INTERFACE:-Wl,-rpath-link,${dir}>
    $<INSTALL_INTERFACE:-Wl,-rpath-link,$<INSTALL_PREFIX>/${CMAKE_INSTALL_LIBDIR}/shoal/${below}>)
endforeach()

# With the `cuda` preset: kernels/cuda/, the NCCL communicator, and libtorch's CUDA library. It is built where
# there is no GPU too; the libraries that libtorch_cuda.so needs in turn come from the toolkit, or Python's
# wheels, of the machine that runs the program.
if(SHOAL_CUDA)
  set(CMAKE_CUDA_ARCHITECTURES 80 90 CACHE STRING "GPUs to compile for; the newest one's code runs on later ones")
  enable_language(CUDA)
  # CMake 3.25 does not know that nvcc 13 takes it.
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  find_package(CUDAToolkit 13 REQUIRED)
  find_path(SHOAL_NCCL_INCLUDE nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS} REQUIRED)
  find_library(SHOAL_NCCL_LIBRARY nccl HINTS ${CUDAToolkit_LIBRARY_DIR} REQUIRED)
  # What files of a room that are compiled for GPUs alone use.
  add_library(shoal_cuda INTERFACE)
  target_include_directories(shoal_cuda SYSTEM INTERFACE ${CUDAToolkit_INCLUDE_DIRS} ${SHOAL_NCCL_INCLUDE})
  target_link_libraries(shoal_cuda INTERFACE CUDA::cudart ${SHOAL_NCCL_LIBRARY})
  # Nothing names libtorch_cuda.so's symbols, so the linker must be told to keep it.
  target_link_options(shoal_torch INTERFACE -Wl,--allow-shlib-undefined)
  target_link_libraries(shoal_torch INTERFACE
    $<BUILD_INTERFACE:-Wl,--no-as-needed,${SHOAL_TORCH}/lib/libtorch_cuda.so,--as-needed>
    $<BUILD_INTERFACE:${SHOAL_TORCH}/lib/libc10_cuda.so> $<BUILD_INTERFACE:shoal_cuda>)
endif()

if(SHOAL_TESTS)
  find_package(GTest REQUIRED)
endif()
