// Reads some tokens with a StaticMamba and prints all logits, as the bits of floats, and what it cost. The program
// `oracle` on the computer that built it compares them.
#include MODEL_HEADER  // written by convert: namespace MODEL

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "machine.hpp"
#include "tokens.hpp"

namespace {

/// What this board has.
struct Board : minimamba::StaticBoard {
  static constexpr std::size_t flash = std::size_t{4} << 20, ram = std::size_t{256} << 10;
};
/// The same with sums in float.
struct FastBoard : Board {
  using Sum = float;
};

using Config = MODEL::Config;
using Precise = minimamba::StaticMamba<Config, Board>;
using Fast = minimamba::StaticMamba<Config, FastBoard>;

minimamba::StaticState<Config> state;
/// One of both at a time. In a program with one model it is simply `StaticMamba<Config, Board> model(weights);`.
alignas(Precise) std::byte memory[std::max(sizeof(Precise), sizeof(Fast))];

void print_number(const char* name, std::uint64_t value) {
  char digits[24];
  char* first = digits + sizeof(digits) - 1;
  *first = '\0';
  do *--first = static_cast<char>('0' + value % 10);
  while ((value /= 10) != 0);
  machine::print(name);
  machine::print(" ");
  machine::print(first);
  machine::print("\n");
}

void print_logits(std::span<const float> logits) {
  machine::print("logits");
  for (const float logit : logits) {
    const auto bits = std::bit_cast<std::uint32_t>(logit);
    char text[10] = {' '};
    for (int i = 0; i < 8; ++i) text[1 + i] = "0123456789abcdef"[bits >> (28 - 4 * i) & 15U];
    machine::print(text);
  }
  machine::print("\n");
}

template <class Model>
void run(const char* name) {
  machine::print(name);
  machine::print("\n");
  Model& model = *std::construct_at(reinterpret_cast<Model*>(memory), MODEL::weights);
  state = {};
  std::uint32_t spent = 0;
  for (const std::int32_t token : embedded::tokens) {
    const std::uint32_t before = machine::ticks();
    const std::span<const float> logits = model.forward(token, state);
    spent += machine::ticks() - before;
    print_logits(logits);
  }
  print_number("instructions", std::uint64_t{spent} * machine::instructions_a_tick / std::size(embedded::tokens));
  print_number("activations", Model::activation_bytes);
}

}  // namespace

int machine::program() {
  run<Precise>("double");
  run<Fast>("float");
  print_number("static", machine::static_bytes());
  print_number("stack", machine::stack_bytes());
  print_number("state", Precise::state_bytes);
  print_number("flash", machine::flash_bytes());
  print_number("weights", Precise::weight_bytes);
  return 0;
}
