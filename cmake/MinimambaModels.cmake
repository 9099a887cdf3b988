# minimamba::models: the models of AnyModel compiled once for a whole project, those of a backend and a mixer in one file,
# with the project's compiler and flags. Nothing is built unless something links it.
if(NOT TARGET minimamba_models)
  set(minimamba_models_sources "")
  foreach(minimamba_backend IN ITEMS Native Eigen Reference Cuda)
    foreach(minimamba_mixer IN ITEMS S6 SSD)
      string(TOLOWER ${minimamba_backend} minimamba_name)
      set(minimamba_text "#include <minimamba/backend/${minimamba_name}.hpp>\n#include <minimamba/io/any_model_of.hpp>\n
using namespace minimamba;\n")
      foreach(minimamba_weight IN ITEMS float bf16 f16 q8 q4)
        string(APPEND minimamba_text "template AnyModel AnyModel::load_as<Mamba<float, ${minimamba_backend}Backend, "
                                     "${minimamba_weight}, ${minimamba_mixer}>>(const Checkpoint&, const AnyModelOptions&);\n")
      endforeach()
      string(TOLOWER ${minimamba_mixer} minimamba_mixer)
      set(minimamba_source "${CMAKE_CURRENT_BINARY_DIR}/minimamba/models_${minimamba_name}_${minimamba_mixer}.cpp")
      file(CONFIGURE OUTPUT "${minimamba_source}" CONTENT "${minimamba_text}")
      list(APPEND minimamba_models_sources "${minimamba_source}")
    endforeach()
  endforeach()
  add_library(minimamba_models STATIC EXCLUDE_FROM_ALL ${minimamba_models_sources})
  add_library(minimamba::models ALIAS minimamba_models)
  target_link_libraries(minimamba_models PUBLIC minimamba::files minimamba::kernels ${CMAKE_DL_LIBS})
  target_compile_definitions(minimamba_models PUBLIC MINIMAMBA_COMPILED_MODELS)
endif()
