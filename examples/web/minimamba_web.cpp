// A model for a browser: a C interface for JavaScript around one model whose tokens are bytes. The page passes files
// and prompts through buffer(), and reads text and selections one token at a time. A function that fails returns -1,
// and error() says why. docs/browser.md shows how to call it.
#include <minimamba/backend/native.hpp>
#include <minimamba/generate/sampler.hpp>
#include <minimamba/io/load.hpp>
#include <minimamba/nn/mamba.hpp>
#include <minimamba/nn/selection.hpp>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <emscripten.h>

namespace web {

using namespace minimamba;
using Model = Mamba<float, NativeBackend, bf16>;  // as the shipped file has it: nothing is lost, and it is the fastest

/// What is shown of a layer at a token: the median of dt and the value that 90 % of the channels do not exceed, and the
/// same of the reach of its states, in tokens; -1 is beyond the beginning.
struct Shown {
  float dt, high_dt, reach, high_reach;
};
static_assert(sizeof(Shown) == 4 * sizeof(float));

constexpr std::size_t high = 5;  // the place of 90 among the percentiles
static_assert(TokenSelection::percentiles[high] == 90);

struct Text {
  Text(const Model& of, const SamplerOptions& options, bool shows)
      : model(of), sampler(options, of.config().vocab_size), cache(of.make_cache()) {
    if (shows) reader = std::make_unique<SelectionReader<Model>>(of);
  }

  void read(std::span<const std::int32_t> tokens) {
    sampler.accept(tokens);
    if (!reader) {
      logits = model.forward_last(tokens, cache);
      return;
    }
    shown.resize(tokens.size() * model.layers.size());
    reader->read(tokens, [&](std::size_t layer, const LayerSelection& selection) { show(layer, selection); });
    logits = reader->logits();
  }

  void show(std::size_t layer, const LayerSelection& selection) {
    if (summaries.size() == layer) summaries.emplace_back(selection);
    for (std::size_t t = 0; t < selection.tokens; ++t) {
      const auto token =
          summaries[layer].next(std::span(selection.dt).subspan(t * selection.channels, selection.channels));
      const auto reach = [&](std::size_t i) {
        return token.reach[i] == beyond_the_prompt ? -1.0F : static_cast<float>(token.reach[i]);
      };
      constexpr std::size_t median = TokenSelection::median;
      shown[t * model.layers.size() + layer] = {static_cast<float>(token.dt[median]),
                                                static_cast<float>(token.dt[high]), reach(median), reach(high)};
    }
  }

  const Model& model;
  Sampler sampler;
  Model::Cache cache;                              // when nothing is shown
  std::unique_ptr<SelectionReader<Model>> reader;  // when something is
  std::vector<SelectionSummary> summaries;
  std::vector<Shown> shown;  // [tokens of the last read, layers]
  Model::Logits logits;
};

std::vector<std::byte> bytes;  // what the page passes
std::optional<Model> model;
std::unique_ptr<Text> text;
std::string message;

/// Calls body and returns its result, or -1 if it throws.
template <class Body>
int guarded(Body body) {
  try {
    return body();
  } catch (const std::exception& failure) {
    message = failure.what();
    return -1;
  }
}

int fail(const char* why) {
  message = why;
  return -1;
}

}  // namespace web

extern "C" {

/// Memory for `size` bytes that the next call reads; null if there is none.
EMSCRIPTEN_KEEPALIVE std::byte* minimamba_buffer(std::size_t size) {
  return web::guarded([&] { return web::bytes.resize(size), 0; }) == 0 ? web::bytes.data() : nullptr;
}

/// Loads a model from the buffer: a file of weights of this size, and after it the text of config.json.
EMSCRIPTEN_KEEPALIVE int minimamba_load(std::size_t weights) {
  using namespace web;
  return guarded([&] {
    if (weights > bytes.size()) return fail("the weights are larger than the buffer");
    const std::span<const std::byte> all(bytes);
    const auto checkpoint =
        open_checkpoint(ByteSource(all.first(weights), "the weights"), ByteSource(all.subspan(weights), "config.json"));
    Model loaded = load<Model>(checkpoint, {.backend = NativeBackend<float>({.threads = 1})});
    if (loaded.config().vocab_size != 256) return fail("the model's tokens are not bytes");
    text.reset();
    model.emplace(std::move(loaded));
    bytes = std::vector<std::byte>();  // `= {}` would keep the memory
    return 0;
  });
}

EMSCRIPTEN_KEEPALIVE int minimamba_layers() {
  return web::model ? static_cast<int>(web::model->layers.size()) : web::fail("no model is loaded");
}

/// Begins a text. Temperature 0 always chooses the most likely byte; above 0, bytes of less than min_p times its
/// probability are left out. With `shows`, reading also fills selection().
EMSCRIPTEN_KEEPALIVE int minimamba_begin(double temperature, double min_p, std::uint32_t seed, int shows) {
  using namespace web;
  if (!model) return fail("no model is loaded");
  return guarded([&] {
    const SamplerOptions options{.temperature = temperature, .min_p = min_p, .seed = seed};
    text = std::make_unique<Text>(*model, options, shows != 0);
    return 0;
  });
}

/// Reads the bytes of the buffer.
EMSCRIPTEN_KEEPALIVE int minimamba_read() {
  using namespace web;
  if (!text) return fail("no text has begun");
  return guarded([&] {
    std::vector<std::int32_t> tokens;
    for (const std::byte byte : bytes) tokens.push_back(static_cast<std::int32_t>(byte));
    text->read(tokens);
    return 0;
  });
}

/// Chooses the next byte, reads it and returns it.
EMSCRIPTEN_KEEPALIVE int minimamba_next() {
  using namespace web;
  if (!text || text->logits.rows() == 0) return fail("nothing has been read");
  return guarded([&] {
    const std::int32_t token = text->sampler(text->logits.row(0));
    text->read(std::span(&token, 1));
    return token;
  });
}

/// What was selected at the bytes of the last read: for each byte and layer, four numbers (see Shown).
EMSCRIPTEN_KEEPALIVE const float* minimamba_selection() {
  return web::text && !web::text->shown.empty() ? &web::text->shown.front().dt : nullptr;
}

EMSCRIPTEN_KEEPALIVE const char* minimamba_error() { return web::message.c_str(); }
}
