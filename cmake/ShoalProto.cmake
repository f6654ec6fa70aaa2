# `shoal_proto(<variable> room/x.proto ...)` sets <variable> to the generated sources of the protocol buffers,
# which are included as "room/x.pb.h".
function(shoal_proto variable)
  set(generated)
  foreach(proto ${ARGN})
    string(REGEX REPLACE "\\.proto$" "" stem ${proto})
    add_custom_command(
      OUTPUT ${PROJECT_BINARY_DIR}/${stem}.pb.cc ${PROJECT_BINARY_DIR}/${stem}.pb.h
      COMMAND protobuf::protoc --cpp_out=${PROJECT_BINARY_DIR} -I ${PROJECT_SOURCE_DIR} ${proto}
      DEPENDS ${PROJECT_SOURCE_DIR}/${proto}
      WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
      VERBATIM)
    list(APPEND generated ${PROJECT_BINARY_DIR}/${stem}.pb.cc ${PROJECT_BINARY_DIR}/${stem}.pb.h)
  endforeach()
  set(${variable} ${generated} PARENT_SCOPE)
endfunction()
