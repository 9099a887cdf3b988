// Shows what a model selects: for each token of a prompt and each layer dt, and how far back the state reaches. Each is
// a page of its own, which works without a network, and an SVG picture.
#include <CLI/CLI.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "command_line.hpp"
#include "program.hpp"
#include "visualize_page.hpp"
#include "visualize_select.hpp"

namespace {

using minimamba::TokenSelection;
using program::stop;
using visualize::Quantity, visualize::Selections, visualize::Statistic;

struct Arguments {
  std::string model, tokenizer, prompt, prompt_file, prompt_ids, out, layers, title;
  std::string weights = "f32";
  int quantile = 50, threads = 0;
  bool saturate = false, special_tokens_as_text = false;
};

std::vector<std::int32_t> read_prompt(const Arguments& arguments,
                                      const std::optional<minimamba::Tokenizer>& tokenizer) {
  const bool ids = arguments.prompt.empty() && arguments.prompt_file.empty();
  if (!ids && !tokenizer) {
    throw minimamba::ArgumentError("--prompt", "the model has no tokenizer; use --tokenizer FILE or --prompt-ids");
  }
  auto tokens = ids ? program::parse_ids(arguments.prompt_ids)
                    : tokenizer->encode(
                          arguments.prompt_file.empty() ? arguments.prompt : program::read_file(arguments.prompt_file),
                          {.special_tokens_as_text = arguments.special_tokens_as_text});
  if (tokens.empty()) throw minimamba::ArgumentError("--prompt", "at least one token", "none");
  return tokens;
}

/// The layers that a list such as 0,4-6 names, in order; all of them if it is empty.
std::vector<std::size_t> parse_layers(const std::string& text, std::size_t count) {
  std::vector<bool> chosen(count, text.empty());
  const auto refuse = [&] {
    throw minimamba::ArgumentError("--layers", "numbers and ranges below " + std::to_string(count) + ", such as 0,2-3",
                                   "\"" + text + "\"");
  };
  for (const char *at = text.data(), *const end = at + text.size(); at != end;) {
    std::size_t first = 0, last = 0;
    auto read = std::from_chars(at, end, first);
    last = first;
    if (read.ec == std::errc() && read.ptr != end && *read.ptr == '-') read = std::from_chars(read.ptr + 1, end, last);
    if (read.ec != std::errc() || first > last || last >= count) refuse();
    for (std::size_t i = first; i <= last; ++i) chosen[i] = true;
    at = read.ptr;
    if (at != end && (*at != ',' || ++at == end)) refuse();
  }
  std::vector<std::size_t> layers;
  for (std::size_t i = 0; i < count; ++i) {
    if (chosen[i]) layers.push_back(i);
  }
  return layers;
}

std::vector<visualize::Label> labels_of(std::span<const std::int32_t> tokens,
                                        const std::optional<minimamba::Tokenizer>& tokenizer) {
  std::vector<visualize::Label> labels;
  for (const std::int32_t id : tokens) {
    labels.push_back(tokenizer && id < tokenizer->size() ? visualize::label_of(id, tokenizer->bytes_of(id))
                                                         : visualize::label_of(id));
  }
  return labels;
}

/// The model of the checkpoint, with its matrices in the format that the arguments name, reads the tokens.
Selections select(const minimamba::Checkpoint& checkpoint, std::span<const std::int32_t> tokens,
                  const Arguments& arguments) {
  const visualize::RunOptions options{.threads = arguments.threads,
                                      .saturate = arguments.saturate,
                                      .progress = [](double) { return !stop; },
                                      .on_note = program::print_note};
  return checkpoint.config.visit_files([&]<class Files>(Files) {
    const auto with = [&](auto weight) {
      using Model = typename Files::template Model<float, minimamba::NativeBackend, decltype(weight)>;
      return visualize::select<Model>(checkpoint, tokens, options);
    };
    if (arguments.weights == "bf16") return with(minimamba::bf16());
    if (arguments.weights == "f16") return with(minimamba::f16());
    if (arguments.weights == "q8") return with(minimamba::q8());
    if (arguments.weights == "q4") return with(minimamba::q4());
    return with(float());
  });
}

/// A statistic of each cell, number_of(token).
template <class NumberOf>
Statistic statistic(std::string name, int percent, const Selections& all, const std::vector<std::size_t>& layers,
                    NumberOf&& number_of) {
  Statistic own{.name = std::move(name), .percent = percent};
  for (const std::size_t layer : layers) {
    for (const TokenSelection& token : all[layer]) own.values.push_back(number_of(token));
  }
  return own;
}

/// Adds the quantiles, and shows the one that the arguments name.
template <class NumberOf>
void add_quantiles(Quantity& quantity, const Selections& all, int shown, NumberOf&& number_of) {
  const std::array<const char*, 7> names{"smallest", "10 %", "25 %", "median", "75 %", "90 %", "largest"};
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (TokenSelection::percentiles[i] == shown) quantity.shown = i;
    quantity.statistics.push_back(statistic(names[i], TokenSelection::percentiles[i], all, quantity.layers,
                                            [&](const TokenSelection& token) { return number_of(token, i); }));
  }
}

Quantity dt_of(const Selections& all, Quantity quantity, int shown) {
  quantity.file = "dt";
  quantity.title = "dt of each token and layer" + quantity.title;
  quantity.over = "channels";
  quantity.note = " over the channels, logarithmic scale";
  quantity.small = "it keeps its state";
  quantity.large = "it takes in the token";
  quantity.light = visualize::dt_light, quantity.dark = visualize::dt_dark;
  add_quantiles(quantity, all, shown, [](const auto& token, std::size_t i) { return token.dt[i]; });
  quantity.statistics.push_back(
      statistic("mean", -1, all, quantity.layers, [](const auto& token) { return token.mean_dt; }));
  return quantity;
}

Quantity reach_of(const Selections& all, Quantity quantity, int shown) {
  quantity.file = "reach";
  quantity.title = "Tokens back to which the state reaches" + quantity.title;
  quantity.unit = " tokens";
  quantity.over = "channels and states";
  quantity.note =
      " over channels and states of the tokens until the product of exp(dt A) is below 1/e, logarithmic scale";
  quantity.small = "it has just forgotten";
  quantity.large = "it still remembers";
  quantity.light = visualize::reach_light, quantity.dark = visualize::reach_dark;
  quantity.may_be_beyond = true;
  add_quantiles(quantity, all, shown, [](const auto& token, std::size_t i) {
    return token.reach[i] == minimamba::beyond_the_prompt ? visualize::beyond : static_cast<double>(token.reach[i]);
  });
  return quantity;
}

int run(const Arguments& arguments) {
  minimamba::Checkpoint checkpoint = program::open_model(arguments.model);
  const bool text = !arguments.prompt.empty() || !arguments.prompt_file.empty();
  const auto tokenizer = program::find_tokenizer(arguments.tokenizer, checkpoint, text);
  if (tokenizer) minimamba::count_named_tokens(checkpoint.config, *tokenizer);
  const auto tokens = read_prompt(arguments, tokenizer);
  const Quantity common{
      .title = " \u00b7 " +
               visualize::line_of(arguments.title.empty() ? checkpoint.folder.filename().string() : arguments.title),
      .layers = parse_layers(arguments.layers, static_cast<std::size_t>(checkpoint.config.n_layer)),
      .tokens = labels_of(tokens, tokenizer)};
  const std::filesystem::path out(arguments.out);
  minimamba::MadeFolders folders(out);
  std::vector<std::pair<std::filesystem::path, minimamba::AtomicFile>> files;  // that they can be written is known now
  for (const char* const name : {"dt.html", "dt.svg", "reach.html", "reach.svg"})
    files.emplace_back(out / name, out / name);
  const Selections all = select(checkpoint, tokens, arguments);
  const Quantity dt = dt_of(all, common, arguments.quantile), reach = reach_of(all, common, arguments.quantile);
  files[0].second.write(page_html(dt));
  files[1].second.write(picture_svg(dt, true));
  files[2].second.write(page_html(reach));
  files[3].second.write(picture_svg(reach, true));
  for (auto& [path, file] : files) file.commit();
  folders.keep();
  for (const auto& [path, file] : files) {
    if (!program::print(path.string() + "\n")) break;
  }
  return 0;
}

void add_options(CLI::App& app, Arguments& arguments) {
  app.set_version_flag("--version", "minimamba " MINIMAMBA_VERSION_STRING);
  app.add_option("--model", arguments.model,
                 "Checkpoint folder or file, in any format (default: the model that ships with minimamba)");
  app.add_option("--tokenizer", arguments.tokenizer,
                 "tokenizer.json or GGUF file to use instead of the model's tokenizer");
  auto* text = app.add_option("--prompt", arguments.prompt, "Text to read");
  auto* file = app.add_option("--prompt-file", arguments.prompt_file, "File with the text to read (-: standard input)");
  auto* ids = app.add_option("--prompt-ids", arguments.prompt_ids, "Token ids to read, such as \"1 2 3\"");
  text->excludes(file)->excludes(ids);
  file->excludes(ids);
  app.add_flag("--special-tokens-as-text", arguments.special_tokens_as_text,
               "Encode the names of special tokens in the prompt as ordinary text");
  app.add_option("--out", arguments.out, "Folder for dt.html, dt.svg, reach.html and reach.svg")->required();
  app.add_option("--layers", arguments.layers, "Layers to show, such as 0,4-6 (default: all)");
  app.add_option("--quantile", arguments.quantile,
                 "The quantile over the channels that the pictures show, in percent; the pages have all of these")
      ->check(CLI::IsMember(std::vector<int>(TokenSelection::percentiles.begin(), TokenSelection::percentiles.end())))
      ->capture_default_str();
  app.add_option("--title", arguments.title, "What the pictures call the model (default: its folder)");
  app.add_option("--weights", arguments.weights, "Weight format of the matrices in memory")
      ->check(CLI::IsMember({"f32", "bf16", "f16", "q8", "q4"}))
      ->capture_default_str();
  app.add_flag("--saturate", arguments.saturate, "Clamp weights outside the range of --weights instead of failing");
  app.add_option("--threads", arguments.threads, "Number of threads (0: one for each available core)")
      ->capture_default_str();
}

/// Defaults for options that were not given: the model that ships with minimamba, and something for it to read.
void use_shipped_model(const CLI::App& app, Arguments& arguments) {
  arguments.model = program::shipped_model("shakespeare").string();
  const bool prompted = app.count("--prompt") + app.count("--prompt-file") + app.count("--prompt-ids") > 0;
  if (!prompted) arguments.prompt = "ROMEO:\nBut, soft! what light through yonder window breaks?\n";
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("Shows what a Mamba model selects in a prompt: dt, and how far back its state reaches.");
  add_options(app, arguments);
  return program::run("visualize", app, {argc, argv}, [&] {
    if (app.count("--model") == 0) use_shipped_model(app, arguments);
    return run(arguments);
  });
}
