// What StaticMamba refuses to compile, in words: -DCASE=<number> makes one of the mistakes below; with -DCASE=0 there
// is none. Compiled without exceptions and run-time type information.
#include <minimamba/embedded.hpp>

struct Config : minimamba::StaticConfig {
  static constexpr std::size_t d_model = 64, n_layer = 2, vocab_size = 256, d_inner = 128, dt_rank = 4;
#if CASE == 4
  static constexpr std::size_t head_dim = 64;
#elif CASE == 5
  using Weight = minimamba::q4;
#elif CASE == 0
  using Weight = minimamba::q8;
#endif
};
struct Larger : Config {
  static constexpr std::size_t d_model = 96;
};

struct Board : minimamba::StaticBoard {
  static constexpr std::size_t flash = CASE == 2 ? 100000 : 1 << 20;
  static constexpr std::size_t ram = CASE == 3 ? 10000 : 64 << 10;
#if CASE == 6
  using Sum = int;
#endif
};

#if CASE == 1
extern const minimamba::StaticWeights<Larger> weights;
#else
extern const minimamba::StaticWeights<Config> weights;
#endif

std::int32_t next(std::int32_t token, minimamba::StaticState<Config>& state, minimamba::Random& random) {
  minimamba::StaticMamba<Config, Board> model(weights);
  return minimamba::sample_token(model.forward(token, state), 0.7, random);
}
