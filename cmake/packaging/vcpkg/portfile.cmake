# Untried with vcpkg itself: the configuration below is that of the test consume.pkg_config. A release sets REF to its tag,
# and SHA512 to what vcpkg prints for it.
vcpkg_from_github(OUT_SOURCE_PATH SOURCE_PATH REPO minimamba/minimamba REF "v${VERSION}" SHA512 0 HEAD_REF main)
set(VCPKG_BUILD_TYPE release)  # headers
vcpkg_cmake_configure(SOURCE_PATH "${SOURCE_PATH}"
                      OPTIONS -DMINIMAMBA_BUILD_TESTS=OFF -DMINIMAMBA_BUILD_EXAMPLES=OFF -DMINIMAMBA_BUILD_BENCH=OFF -DMINIMAMBA_MPI=OFF)
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(CONFIG_PATH share/cmake/minimamba)
vcpkg_fixup_pkgconfig()
file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/debug" "${CURRENT_PACKAGES_DIR}/lib")
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
