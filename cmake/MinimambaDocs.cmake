# The target `docs`: the site, build/docs/html, of the headers and the pages. A warning of Doxygen is an error.
#   cmake --preset docs && cmake --build --preset docs
# With MINIMAMBA_DOXYGEN_AWESOME, a folder with doxygen-awesome.css, it looks better; MINIMAMBA_FETCH_DEPENDENCIES=ON
# downloads that.
find_package(Doxygen 1.9.4 REQUIRED)
find_package(Python3 REQUIRED COMPONENTS Interpreter)
set(MINIMAMBA_DOXYGEN_AWESOME "" CACHE PATH "Folder of doxygen-awesome-css, for the site")

if(NOT MINIMAMBA_DOXYGEN_AWESOME AND MINIMAMBA_FETCH_DEPENDENCIES)
  FetchContent_Declare(doxygen_awesome GIT_REPOSITORY https://github.com/jothepro/doxygen-awesome-css.git
                       GIT_TAG 82d315e34ac419a81caccf470cc2fbc2ec8ee524)
  FetchContent_MakeAvailable(doxygen_awesome)
  set(MINIMAMBA_DOXYGEN_AWESOME ${doxygen_awesome_SOURCE_DIR})
endif()

set(DOXYGEN_PROJECT_BRIEF "Mamba in C++")
set(DOXYGEN_USE_MDFILE_AS_MAINPAGE ${PROJECT_SOURCE_DIR}/README.md)
set(DOXYGEN_FILE_PATTERNS *.hpp *.md)
set(DOXYGEN_FILTER_PATTERNS "*.md=\"${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/docs/doxygen_filter.py\"")
set(DOXYGEN_VERBATIM_VARS DOXYGEN_FILTER_PATTERNS)
set(DOXYGEN_IMAGE_PATH docs)
set(DOXYGEN_EXCLUDE include/minimamba/backend/cuda include/minimamba/backend/native include/minimamba/files.hpp include/minimamba/kernels.hpp)
set(DOXYGEN_EXCLUDE_SYMBOLS *::detail* std*)
set(DOXYGEN_EXTRACT_ALL YES)
set(DOXYGEN_JAVADOC_AUTOBRIEF YES)
set(DOXYGEN_MACRO_EXPANSION YES)
set(DOXYGEN_EXPAND_ONLY_PREDEF YES)
set(DOXYGEN_SEARCH_INCLUDES NO)
set(DOXYGEN_PREDEFINED MINIMAMBA_ISA=isa)
set(DOXYGEN_WARN_IF_UNDOCUMENTED NO)
set(DOXYGEN_WARN_AS_ERROR FAIL_ON_WARNINGS)
set(DOXYGEN_HAVE_DOT NO)
set(DOXYGEN_QUIET YES)
set(DOXYGEN_GENERATE_TREEVIEW YES)
set(DOXYGEN_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR})
if(MINIMAMBA_DOXYGEN_AWESOME)
  set(DOXYGEN_HTML_EXTRA_STYLESHEET ${MINIMAMBA_DOXYGEN_AWESOME}/doxygen-awesome.css)
endif()
doxygen_add_docs(docs include README.md CONTRIBUTING.md CHANGELOG.md SECURITY.md docs examples/data/shakespeare/README.md examples/data/shakespeare-draft/README.md
                 WORKING_DIRECTORY ${PROJECT_SOURCE_DIR} COMMENT "Writing the site")
