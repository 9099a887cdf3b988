# Finds cpp-httplib 0.11 to 0.14 with pkg-config, which gives the flags that the header of a compiled library needs, as in
# Debian. Defines the target httplib::httplib. From 0.15 on, servers that read connections themselves are written otherwise.
if(NOT TARGET httplib::httplib)
  find_package(PkgConfig QUIET)
  if(PkgConfig_FOUND)
    pkg_check_modules(PC_HTTPLIB QUIET IMPORTED_TARGET "cpp-httplib >= 0.11" "cpp-httplib < 0.15")
  endif()
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(httplib REQUIRED_VARS PC_HTTPLIB_FOUND VERSION_VAR PC_HTTPLIB_VERSION)
if(httplib_FOUND AND NOT TARGET httplib::httplib)
  add_library(httplib::httplib INTERFACE IMPORTED)
  target_link_libraries(httplib::httplib INTERFACE PkgConfig::PC_HTTPLIB)
endif()
