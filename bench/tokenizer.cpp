// GPT-NeoX's tokenizer on English and on texts that punish whoever is not linear. Needs tokenizer/ and data/ below
// MINIMAMBA_TEST_DATA; without them there is nothing to measure.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/text.hpp"

#include "support/measure.hpp"

using namespace minimamba_bench;

namespace {

namespace fs = std::filesystem;

std::string read_file(const fs::path& path) {
  const auto source = minimamba::ByteSource::open(path);
  std::string text(static_cast<std::size_t>(source.size()), '\0');
  source.read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

/// A megabyte of the same again and again.
std::string repeated(const std::string& part) {
  std::string text;
  while (text.size() < 1'000'000) text += part;
  return text;
}

void add_texts(const fs::path& folder) {
  const fs::path json = folder / "tokenizer" / "gpt-neox-tokenizer.json";
  const auto tokenizer = std::make_shared<minimamba::Tokenizer>(minimamba::Tokenizer::load(json));
  const auto file_size = static_cast<double>(fs::file_size(json));
  add("tokenizer/load", [json, file_size](benchmark::State& state) {
    measure(state, {.bytes = file_size}, {read_limit(static_cast<std::size_t>(file_size), 1)},
            [&] { benchmark::DoNotOptimize(minimamba::Tokenizer::load(json).size()); });
  });
  const std::vector<std::pair<std::string, std::string>> texts{
      {"english", read_file(folder / "data" / "tinyshakespeare.txt")},
      {"one_letter", repeated("a")},
      {"spaces", repeated(" ")},
      {"one_cjk_character", repeated("\u4E2D")},
      {"combining_marks", repeated("\u0301\u0323")}};
  for (const auto& [name, text] : texts) {
    const auto ids = tokenizer->encode(text);
    const Work work{.tokens = static_cast<double>(ids.size()), .bytes = static_cast<double>(text.size())};
    add("tokenizer/encode/" + name, [tokenizer, text = text, work](benchmark::State& state) {
      measure(state, work, {read_limit(text.size(), 1)},
              [&] { benchmark::DoNotOptimize(tokenizer->encode(text).data()); });
    });
    add("tokenizer/decode/" + name, [tokenizer, ids, work](benchmark::State& state) {
      measure(state, work, {read_limit(static_cast<std::size_t>(work.bytes), 1)},
              [&] { benchmark::DoNotOptimize(tokenizer->decode(ids).data()); });
    });
  }
}

}  // namespace

int main(int argc, char** argv) {
  const char* const data = std::getenv("MINIMAMBA_TEST_DATA");
  if (data == nullptr || !fs::exists(fs::path(data) / "tokenizer") || !fs::exists(fs::path(data) / "data")) {
    std::printf("skipped: MINIMAMBA_TEST_DATA names no folder with tokenizer/ and data/\n");
    return 0;
  }
  return run(argc, argv, [&](const Options&) { add_texts(data); });
}
