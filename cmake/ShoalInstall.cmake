# `cmake --install build/release --prefix P` makes a folder that can be moved as a whole:
#
#   P/bin/shoal               the program
#   P/lib/shoal/*.a           the library: one archive a room, as find_package(Shoal) names them
#   P/lib/shoal/torch, nvidia the parts of libtorch's wheel that both need
#   P/include/shoal           headers, included as "core/recipe.h"
#   P/share/shoal/recipes     the recipes
include(CMakePackageConfigHelpers)
set(shoal_library_dir ${CMAKE_INSTALL_LIBDIR}/shoal)
set(shoal_cmake_dir ${CMAKE_INSTALL_LIBDIR}/cmake/Shoal)

get_property(shoal_rooms GLOBAL PROPERTY SHOAL_ROOMS)
set_target_properties(shoal_torch PROPERTIES EXPORT_NAME torch)
install(TARGETS shoal_torch ${shoal_rooms} EXPORT ShoalTargets ARCHIVE DESTINATION ${shoal_library_dir})
install(EXPORT ShoalTargets NAMESPACE Shoal:: DESTINATION ${shoal_cmake_dir})

set_target_properties(shoal PROPERTIES
  INSTALL_RPATH "$ORIGIN/../${shoal_library_dir}/torch/lib")
install(TARGETS shoal RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})

foreach(room core kernels parallel optim data models checkpoint inference trainer launch)
  foreach(root ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR})  # Sources, and what protoc wrote
    install(DIRECTORY ${root}/${room}/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/shoal/${room} OPTIONAL
      FILES_MATCHING PATTERN "*.h" PATTERN CMakeFiles EXCLUDE)
  endforeach()
endforeach()

# The wheel's layout is kept, so that its own rpaths find the CUDA runtime libraries beside it.
file(GLOB shoal_torch_libraries
  ${SHOAL_TORCH}/lib/libtorch_cpu.so ${SHOAL_TORCH}/lib/libc10.so ${SHOAL_TORCH}/lib/libgomp*)
if(SHOAL_CUDA)
  list(APPEND shoal_torch_libraries ${SHOAL_TORCH}/lib/libtorch_cuda.so ${SHOAL_TORCH}/lib/libc10_cuda.so)
endif()
install(FILES ${shoal_torch_libraries} DESTINATION ${shoal_library_dir}/torch/lib)
foreach(entry ATen c10 torch caffe2)
  install(DIRECTORY ${SHOAL_TORCH}/include/${entry} DESTINATION ${shoal_library_dir}/torch/include)
endforeach()
install(DIRECTORY ${SHOAL_DEPS}/nvidia DESTINATION ${shoal_library_dir}
  FILES_MATCHING PATTERN "libcudart.so*" PATTERN "libcupti.so*")

install(DIRECTORY ${PROJECT_SOURCE_DIR}/recipes DESTINATION ${CMAKE_INSTALL_DATADIR}/shoal)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/shoal)

configure_package_config_file(
  ${PROJECT_SOURCE_DIR}/cmake/ShoalConfig.cmake.in ${PROJECT_BINARY_DIR}/ShoalConfig.cmake
  INSTALL_DESTINATION ${shoal_cmake_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/ShoalConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/ShoalConfig.cmake ${PROJECT_BINARY_DIR}/ShoalConfigVersion.cmake
  ${PROJECT_SOURCE_DIR}/cmake/FindOneDNN.cmake
  DESTINATION ${shoal_cmake_dir})
