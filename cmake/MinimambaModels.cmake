# minimamba::models: the models of AnyModel compiled once for a whole project, each in a file of its own, with the
# project's compiler and flags. Nothing is built unless something links it.
if(NOT TARGET minimamba_models)
  set(minimamba_model_sources "")
  foreach(minimamba_backend IN ITEMS native:NativeBackend eigen:EigenBackend reference:ReferenceBackend)
    string(REPLACE ":" ";" minimamba_backend ${minimamba_backend})
    list(GET minimamba_backend 0 minimamba_header)
    list(GET minimamba_backend 1 minimamba_class)
    foreach(minimamba_weight IN ITEMS float bf16 f16 q8 q4)
      set(minimamba_source "${CMAKE_CURRENT_BINARY_DIR}/minimamba/models/${minimamba_header}_${minimamba_weight}.cpp")
      set(minimamba_type "minimamba::Mamba<float, minimamba::${minimamba_class}, ${minimamba_weight}>")
      file(CONFIGURE OUTPUT "${minimamba_source}" CONTENT "#include <minimamba/backend/${minimamba_header}.hpp>
#include <minimamba/io/any_model_of.hpp>

using namespace minimamba;
template AnyModel AnyModel::load_as<${minimamba_type}>(const Checkpoint&, const AnyModelOptions&);
")
      list(APPEND minimamba_model_sources "${minimamba_source}")
    endforeach()
  endforeach()
  add_library(minimamba_models STATIC EXCLUDE_FROM_ALL ${minimamba_model_sources})
  add_library(minimamba::models ALIAS minimamba_models)
  target_link_libraries(minimamba_models PUBLIC minimamba::io minimamba::kernels)
  target_compile_definitions(minimamba_models PUBLIC MINIMAMBA_COMPILED_MODELS)
endif()
