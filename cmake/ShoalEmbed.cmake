# `shoal_embed(<output.cc> FILE <file> SYMBOL <name>)` writes, at build time, a C++ source that holds the
# bytes of the file; declare them as
#   namespace shoal::embedded { extern const char <name>[]; extern const unsigned long <name>_size; }
function(shoal_embed output)
  cmake_parse_arguments(ARG "" "FILE;SYMBOL" "" ${ARGN})
  add_custom_command(
    OUTPUT ${output}
    COMMAND ${CMAKE_COMMAND} -DINPUT=${ARG_FILE} -DOUTPUT=${output} -DSYMBOL=${ARG_SYMBOL}
            -P ${PROJECT_SOURCE_DIR}/cmake/embed_file.cmake
    DEPENDS ${ARG_FILE} ${PROJECT_SOURCE_DIR}/cmake/embed_file.cmake
    VERBATIM)
endfunction()
