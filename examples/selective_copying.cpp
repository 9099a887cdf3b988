// The command line of selective_copying: see selective_copying.hpp.
#include "selective_copying.hpp"

#ifdef MINIMAMBA_COMPILED_TASKS  // which CMakeLists.txt defines: each type of model is compiled in a file of its own
using namespace minimamba;
extern template void selective_copying::run<Mamba<float, NativeTraining, float, S6>>(const synthetic::Options&,
                                                                                     std::size_t,
                                                                                     const ConfigOf<S6<float>>&);
extern template void selective_copying::run<Mamba<float, NativeTraining, float, SSD>>(const synthetic::Options&,
                                                                                      std::size_t,
                                                                                      const ConfigOf<SSD<float>>&);
extern template void selective_copying::run<Mamba<float, CudaTraining, float, S6>>(const synthetic::Options&,
                                                                                   std::size_t,
                                                                                   const ConfigOf<S6<float>>&);
extern template void selective_copying::run<Mamba<float, CudaTraining, float, SSD>>(const synthetic::Options&,
                                                                                    std::size_t,
                                                                                    const ConfigOf<SSD<float>>&);
#endif

int main(int argc, char** argv) {
  synthetic::Options options;
  options.steps = 6000, options.batch = 32, options.length = 256, options.max_lr = 4e-3, options.min_lr = 1e-4;
  options.plot = "selective_copying.svg";
  std::size_t sequences = 1000;
  CLI::App app("Trains a Mamba model on the paper's selective copying of 16 tokens.");
  synthetic::add_options(app, options);
  app.add_option("--length", options.length, "Sequence length: tokens to copy and noise")
      ->check(CLI::Range(static_cast<int>(selective_copying::copied), 1 << 24))
      ->capture_default_str();
  app.add_option("--sequences", sequences, "Test sequences for each length")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  return synthetic::run("selective_copying", app, {argc, argv}, options,
                        [&]<class Model>(const typename Model::Config& config) {
                          selective_copying::run<Model>(options, sequences, config);
                        });
}
