// The models of adapted_model.hpp, in a file of their own because they take long to compile.
#include "adapted_model.hpp"

#include <minimamba/backend/native.hpp>
#include <minimamba/io/adapter.hpp>
#include <minimamba/io/any_model_of.hpp>

#include <utility>

namespace program {
namespace {

template <class Model>
minimamba::AnyModel load(const minimamba::Checkpoint& checkpoint, const minimamba::AdapterFiles& adapter,
                         const minimamba::AnyModelOptions& options) {
  Model model =
      minimamba::load<Model>(checkpoint, {.backend = minimamba::NativeBackend<float>({.threads = options.threads}),
                                          .progress = options.progress,
                                          .on_note = options.on_note,
                                          .saturate = options.saturate});
  load_adapter(model, adapter, options.on_note);
  return minimamba::AnyModel::of(std::move(model));
}

}  // namespace

minimamba::AnyModel load_adapted(const minimamba::Checkpoint& checkpoint, const std::string& adapter,
                                 const minimamba::AnyModelOptions& options) {
  using minimamba::Lora, minimamba::NativeBackend;
  if (options.backend != "native" && options.backend != "auto") {
    throw minimamba::ArgumentError("--backend", "native with --adapter; merge the adapter with convert for others",
                                   options.backend);
  }
  const minimamba::AdapterFiles files = minimamba::open_adapter(adapter);
  return checkpoint.config.visit_files([&]<class Files>(Files) {
    if (options.weights == "f32") {
      return load<typename Files::template Model<float, NativeBackend, Lora<float>>>(checkpoint, files, options);
    }
    if (options.weights == "q8") {
      return load<typename Files::template Model<float, NativeBackend, Lora<minimamba::q8>>>(checkpoint, files,
                                                                                             options);
    }
    throw minimamba::ArgumentError("--weights", "f32 or q8 with --adapter", options.weights);
  });
}

}  // namespace program
