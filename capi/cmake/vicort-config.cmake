# find_package(vicort) -> vicort::vicort: libvicort.so with vicort.h and vicort.hpp.
get_filename_component(_vicort_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

if(NOT TARGET vicort::vicort)
  add_library(vicort::vicort SHARED IMPORTED)
  set_target_properties(vicort::vicort PROPERTIES
    IMPORTED_LOCATION "${_vicort_prefix}/lib/libvicort.so"
    IMPORTED_SONAME "libvicort.so"
    INTERFACE_INCLUDE_DIRECTORIES "${_vicort_prefix}/include")
endif()

unset(_vicort_prefix)
