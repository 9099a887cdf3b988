// The command line of induction_heads: see induction_heads.hpp.
#include "induction_heads.hpp"

#ifdef MINIMAMBA_COMPILED_TASKS  // which CMakeLists.txt defines: each type of model is compiled in a file of its own
using namespace minimamba;
extern template void induction_heads::run<Mamba<float, NativeTraining, float, S6>>(const synthetic::Options&,
                                                                                   const induction_heads::Test&,
                                                                                   const ConfigOf<S6<float>>&);
extern template void induction_heads::run<Mamba<float, NativeTraining, float, SSD>>(const synthetic::Options&,
                                                                                    const induction_heads::Test&,
                                                                                    const ConfigOf<SSD<float>>&);
extern template void induction_heads::run<Mamba<float, CudaTraining, float, S6>>(const synthetic::Options&,
                                                                                 const induction_heads::Test&,
                                                                                 const ConfigOf<S6<float>>&);
extern template void induction_heads::run<Mamba<float, CudaTraining, float, SSD>>(const synthetic::Options&,
                                                                                  const induction_heads::Test&,
                                                                                  const ConfigOf<SSD<float>>&);
#endif

int main(int argc, char** argv) {
  synthetic::Options options;
  // With fewer steps or a lower final learning rate, the memory fades before the millionth token.
  options.steps = 12000, options.max_lr = 4e-3, options.min_lr = 2e-3, options.plot = "induction_heads.svg";
  induction_heads::Test tests;
  CLI::App app("Trains a Mamba model on the paper's induction heads, and tests it on far longer sequences.");
  synthetic::add_options(app, options);
  app.add_option("--length", options.length, "Tokens per training sequence")
      ->check(CLI::Range(3, 1 << 24))
      ->capture_default_str();
  const auto powers = CLI::Range(2, 30);
  app.add_option("--min-power", tests.min_power, "Shortest test length, as a power of 2")
      ->check(powers)
      ->capture_default_str();
  app.add_option("--max-power", tests.max_power, "Longest test length, as a power of 2")
      ->check(powers)
      ->capture_default_str();
  app.add_option("--sequences", tests.sequences, "Test sequences for each length of up to 2^12 tokens")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--long-sequences", tests.long_sequences, "Test sequences for each longer length")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.callback([&] {
    if (tests.min_power <= tests.max_power) return;
    throw CLI::ValidationError("--min-power", "must not exceed --max-power, " + std::to_string(tests.max_power));
  });
  return synthetic::run(
      "induction_heads", app, {argc, argv}, options,
      [&]<class Model>(const typename Model::Config& config) { induction_heads::run<Model>(options, tests, config); });
}
