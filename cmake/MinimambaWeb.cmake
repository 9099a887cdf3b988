# Libraries for browsers. Headers of this machine's nlohmann-json are copied, because those of its C library lie beside
# them. utf8proc is an empty target: the page's tokens are bytes, and nothing calls it.
find_path(MINIMAMBA_JSON nlohmann/json.hpp PATHS /usr/include /usr/local/include /opt/homebrew/include
          NO_CMAKE_FIND_ROOT_PATH REQUIRED)
file(COPY ${MINIMAMBA_JSON}/nlohmann DESTINATION ${PROJECT_BINARY_DIR}/headers)
add_library(nlohmann_json::nlohmann_json INTERFACE IMPORTED GLOBAL)
target_include_directories(nlohmann_json::nlohmann_json INTERFACE ${PROJECT_BINARY_DIR}/headers)
add_library(utf8proc::utf8proc INTERFACE IMPORTED GLOBAL)
