# Installs the headers, the CMake package, the pkg-config files, and the programs with their data.
include(CMakePackageConfigHelpers)

set(package_folder "${CMAKE_INSTALL_DATADIR}/cmake/minimamba")
install(DIRECTORY include/minimamba DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.hpp"
        PATTERN "*.inl" PATTERN "*.cuh")
install(TARGETS minimamba EXPORT minimambaTargets)
install(EXPORT minimambaTargets NAMESPACE minimamba:: DESTINATION "${package_folder}")
if(TARGET minimamba_io)
  install(TARGETS minimamba_io EXPORT minimambaIoTargets)
  install(EXPORT minimambaIoTargets NAMESPACE minimamba:: DESTINATION "${package_folder}")
  if(TARGET minimamba_pcre2)
    install(TARGETS minimamba_pcre2 EXPORT minimambaPcre2Targets)
    install(EXPORT minimambaPcre2Targets NAMESPACE minimamba:: DESTINATION "${package_folder}")
  endif()
  configure_file(cmake/minimamba-io.pc.in minimamba-io.pc @ONLY)
  install(FILES "${PROJECT_BINARY_DIR}/minimamba-io.pc" DESTINATION "${CMAKE_INSTALL_DATADIR}/pkgconfig")
endif()

configure_package_config_file(cmake/minimambaConfig.cmake.in minimambaConfig.cmake INSTALL_DESTINATION "${package_folder}")
write_basic_package_version_file(minimambaConfigVersion.cmake COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES "${PROJECT_BINARY_DIR}/minimambaConfig.cmake" "${PROJECT_BINARY_DIR}/minimambaConfigVersion.cmake"
              cmake/MinimambaKernels.cmake cmake/MinimambaFiles.cmake cmake/MinimambaModels.cmake cmake/MinimambaMpi.cmake
              cmake/FindUtf8proc.cmake cmake/FindPcre2.cmake
        DESTINATION "${package_folder}")

# -isystem keeps a user's warning flags from applying to Eigen's headers: compilers ignore the -I for the same folder that
# eigen3.pc gives. An Eigen that was fetched has no folder to name.
get_target_property(eigen_folder Eigen3::Eigen INTERFACE_INCLUDE_DIRECTORIES)
set(minimamba_pc_eigen "")
if(Eigen3_FOUND AND IS_DIRECTORY "${eigen_folder}")
  set(minimamba_pc_eigen " -isystem ${eigen_folder}")
endif()

# The pkg-config file derives its prefix from its own location, so that the installed tree can be moved or staged.
file(RELATIVE_PATH prefix_from_pc "${CMAKE_INSTALL_FULL_DATADIR}/pkgconfig" "${CMAKE_INSTALL_PREFIX}")
string(REGEX REPLACE "/$" "" prefix_from_pc "${prefix_from_pc}")
configure_file(cmake/minimamba.pc.in minimamba.pc @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/minimamba.pc" DESTINATION "${CMAKE_INSTALL_DATADIR}/pkgconfig")
install(FILES LICENSE README.md DESTINATION "${CMAKE_INSTALL_DOCDIR}")
if(MINIMAMBA_BUILD_EXAMPLES)
  install(TARGETS ${minimamba_examples} DESTINATION "${CMAKE_INSTALL_BINDIR}" OPTIONAL)  # those that were built
  install(DIRECTORY examples/data/ DESTINATION "${CMAKE_INSTALL_DATADIR}/minimamba")
endif()

# A Debian package: cpack -G DEB --config build/<preset>/CPackConfig.cmake
if(PROJECT_IS_TOP_LEVEL)
  set(CPACK_PACKAGE_NAME minimamba)
  set(CPACK_PACKAGE_CONTACT "The minimamba authors")
  set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
  set(CPACK_RESOURCE_FILE_LICENSE "${PROJECT_SOURCE_DIR}/LICENSE")
  set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
  set(CPACK_STRIP_FILES ON)
  set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
  set(CPACK_DEBIAN_PACKAGE_SECTION libdevel)
  set(CPACK_DEBIAN_PACKAGE_DEPENDS "libeigen3-dev, nlohmann-json3-dev, libutf8proc-dev")
  if(MINIMAMBA_BUILD_EXAMPLES)
    set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
  else()
    set(CPACK_DEBIAN_PACKAGE_ARCHITECTURE all)
  endif()
  include(CPack)
endif()
