// What the page must write: a text by the portable kernels of this machine, and how fast one thread is here.
// Prints bytes a second by the portable and by the best kernels, the name of the latter, the share of a processor that
// this program had, and the text.
//   greedy MODEL_FOLDER PROMPT BYTES
#include <minimamba/backend/native.hpp>
#include <minimamba/generate/generate.hpp>
#include <minimamba/io/load.hpp>
#include <minimamba/nn/mamba.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <string>
#include <vector>

namespace greedy {

using namespace minimamba;
using Model = Mamba<float, NativeBackend, bf16>;
using Clock = std::chrono::steady_clock;

/// The text that follows the prompt, and the highest speed of five times, in bytes a second.
std::string write(const Checkpoint& checkpoint, InstructionSet set, const std::string& prompt, std::int64_t count,
                  double& speed) {
  const auto model = load<Model>(checkpoint, {.backend = NativeBackend<float>({.threads = 1, .instruction_set = set})});
  const std::vector<std::int32_t> tokens(prompt.begin(), prompt.end());
  std::string text;
  for (int i = 0; i < 5; ++i) {
    auto cache = model.make_cache();
    text.clear();
    const auto begin = Clock::now();
    for (const auto token : generate(model, cache, tokens, {.max_new_tokens = count})) {
      text += static_cast<char>(token);
    }
    speed = std::max(speed, static_cast<double>(count) / std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return text;
}

int run(const char* folder, const std::string& prompt, std::int64_t count) {
  const auto checkpoint = open_checkpoint(folder);
  double portable = 0, best = 0;
  const auto begin = Clock::now();
  const std::clock_t used = std::clock();
  const std::string text = write(checkpoint, InstructionSet::portable, prompt, count, portable);
  write(checkpoint, InstructionSet::best, prompt, count, best);
  const double share = static_cast<double>(std::clock() - used) / CLOCKS_PER_SEC /
                       std::chrono::duration<double>(Clock::now() - begin).count();
  std::printf("%.0f %.0f %s %.2f\n%s", portable, best, std::string(name_of(best_instruction_set())).c_str(), share,
              text.c_str());
  return 0;
}

}  // namespace greedy

int main(int argc, char** argv) {
  try {
    return argc == 4 ? greedy::run(argv[1], argv[2], std::atoll(argv[3])) : 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
