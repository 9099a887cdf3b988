// What the programs of this folder are compared with, on the computer that builds them:
//   oracle make FOLDER                     saves a model of d_model 64 and 2 layers
//   oracle check FOLDER f32|q8 OUTPUT      compares what a board has printed with the reference backend in double
// Exit status 1 and a reason if a promise of docs/embedded.md does not hold.
//
// The bounds. With f32 weights and sums in double, a logit may be 2e-5 from the oracle. With sums in float, it may be
// as far as ten times what errors of rounding do in three simulated runs: see expectation() in support/bounds.hpp. With
// q8 weights the oracle has the same weights, bit for bit, and both round activations to 1/127 of the largest of a
// block. Where they agree on all those integers, only errors of rounding are left. But an activation that lies next to
// the edge between two integers may be on the other side of it when its last bit differs, and then moves by a whole
// step: an error of the size of that of the rounding itself. If every activation did so, the logits would move as far
// as they are from those without rounding of activations. So the bound is that distance, measured for these tokens in
// double, plus the one of rounding above.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "embedded/tokens.hpp"
#include "minimamba/io.hpp"
#include "support/bounds.hpp"
#include "support/files.hpp"
#include "support/models.hpp"

namespace {

using namespace minimamba;

/// What a board has printed for one type of sums.
struct Printed {
  std::vector<std::vector<float>> logits;  // of each token
  std::map<std::string, std::uint64_t> numbers;
};

std::map<std::string, Printed> read(const char* path) {
  std::map<std::string, Printed> all;
  std::string line, sums;
  for (std::ifstream file(path); std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    words >> name;
    if (name == "double" || name == "float") {
      sums = name;
    } else if (name == "logits") {
      auto& row = all[sums].logits.emplace_back();
      for (std::uint32_t bits = 0; words >> std::hex >> bits;) row.push_back(std::bit_cast<float>(bits));
    } else {
      words >> all[sums].numbers[name];
    }
  }
  return all;
}

bool check(bool holds, const std::string& promise) {
  if (!holds) std::printf("does not hold: %s\n", promise.c_str());
  return holds;
}

bool compare(const std::string& sums, const Printed& printed, const support::Outcome& expected, double allowed) {
  double largest = 0;
  bool whole = printed.logits.size() == expected.logits.rows;
  for (std::size_t i = 0; whole && i < printed.logits.size(); ++i) {
    whole = printed.logits[i].size() == expected.logits.cols;
    for (std::size_t j = 0; whole && j < printed.logits[i].size(); ++j) {
      const double difference =
          std::abs(static_cast<double>(printed.logits[i][j]) - expected.logits.values[i * expected.logits.cols + j]);
      largest = std::max(largest, difference);
      whole = whole && std::isfinite(difference);
    }
  }
  std::printf(
      "sums in %s: logits within %.3g of the oracle (allowed %.3g, the largest is %.3g), %.2f million instructions a "
      "token\n",
      sums.c_str(), largest, allowed, support::largest_magnitude(expected.logits),
      static_cast<double>(printed.numbers.at("instructions")) / 1e6);
  return check(whole, "all logits of all tokens are printed, and finite") &&
         check(largest <= allowed, "the logits are within the bound");
}

int check_output(const std::string& folder, bool quantised, const char* path) {
  const auto printed = read(path);
  const std::vector<std::int32_t> tokens(std::begin(embedded::tokens), std::end(embedded::tokens));
  const auto expected =
      quantised ? support::expectation<float, q8>(load<Mamba<double, ReferenceBackend, q8>>(folder), tokens, 1)
                : support::expectation<float, double>(load<Mamba<double, ReferenceBackend>>(folder), tokens, 1);
  bool good = true;
  for (const char* const sums : {"double", "float"}) {
    const bool promised = !quantised && std::string(sums) == "double";
    good = compare(sums, printed.at(sums), expected.outcome, promised ? 2e-5 : expected.allowed.logits) && good;
  }
  const auto number = [&](const char* name) { return printed.at("float").numbers.at(name); };  // printed last
  const std::uint64_t activations = printed.at("double").numbers.at("activations");
  const std::uint64_t ram = number("static") + number("stack");
  std::printf(
      "RAM %llu bytes (.data and .bss %llu, stack %llu, state %llu, activations %llu), flash %llu (weights %llu)\n",
      static_cast<unsigned long long>(ram), static_cast<unsigned long long>(number("static")),
      static_cast<unsigned long long>(number("stack")), static_cast<unsigned long long>(number("state")),
      static_cast<unsigned long long>(activations), static_cast<unsigned long long>(number("flash")),
      static_cast<unsigned long long>(number("weights")));
  good = check(ram <= number("state") + activations + 8192, "RAM is at most state, activations and 8 KB") && good;
  return good ? 0 : 1;
}

void make(const std::string& folder) {
  const auto model = support::trained_looking_model<Mamba<double, ReferenceBackend>>(
      {.d_model = 64, .n_layer = 2, .vocab_size = 256}, 0);
  save(model, folder, {.matrices = DType::F32});
}

}  // namespace

int main(int count, char** arguments) {
  const std::vector<std::string> words(arguments, arguments + count);
  try {
    if (count == 3 && words[1] == "make") {
      make(words[2]);
      return 0;
    }
    if (count == 5 && words[1] == "check") return check_output(words[2], words[3] == "q8", arguments[4]);
  } catch (const std::out_of_range&) {
    std::printf("oracle: the output of the board is not whole\n");
    return 1;
  } catch (const std::exception& error) {
    std::printf("oracle: %s\n", error.what());
    return 1;
  }
  std::printf("oracle make FOLDER | check FOLDER f32|q8 OUTPUT\n");
  return 2;
}
