# One static library a room. `shoal_room(name SOURCES ... DEPS ...)` makes target shoal_<name>; DEPS is
# the room's "may use" list, which tests/structure_test checks against the #include lines.
add_library(shoal_pch STATIC ${CMAKE_CURRENT_SOURCE_DIR}/cmake/precompiled.cc)
target_link_libraries(shoal_pch PUBLIC shoal_torch)
target_include_directories(shoal_pch PUBLIC ${CMAKE_CURRENT_SOURCE_DIR} ${CMAKE_CURRENT_BINARY_DIR})
target_precompile_headers(shoal_pch PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/cmake/precompiled.h)

function(shoal_room name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(shoal_${name} STATIC ${ARG_SOURCES})
  add_library(Shoal::${name} ALIAS shoal_${name})
  target_include_directories(shoal_${name} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}> $<BUILD_INTERFACE:${PROJECT_BINARY_DIR}>
    $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/shoal>)
  target_link_libraries(shoal_${name} PUBLIC shoal_torch ${ARG_DEPS})
  target_precompile_headers(shoal_${name} REUSE_FROM shoal_pch)
  # libtorch's templates and headers, most of a file's cost, are paid for once a batch. Names in the
  # anonymous namespaces of a room must differ.
  set(generated ${ARG_SOURCES})
  list(FILTER generated INCLUDE REGEX "\\.pb\\.cc$")  # They declare the same names each
  set_source_files_properties(${generated} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  set_target_properties(shoal_${name} PROPERTIES EXPORT_NAME ${name}
    UNITY_BUILD ${SHOAL_UNITY} UNITY_BUILD_BATCH_SIZE 6)
  set_property(GLOBAL APPEND PROPERTY SHOAL_ROOMS shoal_${name})
endfunction()

# `shoal_test(name SOURCES ... DEPS ... [LABELS ...] [RANKS n])` makes a GoogleTest program and its ctest
# entry. With RANKS the program is started by mpirun on that many ranks.
# Environment of every test; of those that start MPI, whose modules keep memory to the end and are
# unloaded before LeakSanitizer could name them.
set(shoal_test_environment "OMP_NUM_THREADS=1")
set(shoal_mpi_test_environment ${shoal_test_environment})
if(SHOAL_SANITIZE)
  list(APPEND shoal_mpi_test_environment
    "ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0:strict_string_checks=1")
endif()

function(shoal_test name)
  cmake_parse_arguments(ARG "" "RANKS" "SOURCES;DEPS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gmock GTest::gtest)
  if(NOT ARG_RANKS)
    target_link_libraries(${name} PRIVATE GTest::gtest_main)
    add_test(NAME ${name} COMMAND ${name})
  else()
    add_test(NAME ${name} COMMAND mpirun --allow-run-as-root --oversubscribe -np ${ARG_RANKS} $<TARGET_FILE:${name}>)
  endif()
  set(environment ${shoal_test_environment})
  if(ARG_RANKS)
    set(environment ${shoal_mpi_test_environment})
  endif()
  # The precompiled header is made with -fPIC; an executable's -fPIE would not match it.
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
  target_compile_options(${name} PRIVATE -fPIC)
  target_precompile_headers(${name} REUSE_FROM shoal_pch)
  set_tests_properties(${name} PROPERTIES
    WORKING_DIRECTORY ${PROJECT_SOURCE_DIR} TIMEOUT 600 LABELS "${ARG_LABELS}" ENVIRONMENT "${environment}")
endfunction()
