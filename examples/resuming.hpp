// The options of --resume that are not given are those that the training run was started with, as its file says.
#ifndef MINIMAMBA_EXAMPLES_RESUMING_HPP
#define MINIMAMBA_EXAMPLES_RESUMING_HPP

#include <minimamba/io.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace program {

/// What the training run in a folder was started with.
class StartedWith {
 public:
  /// Throws FileError if there is no training run, and FormatError for a file that is none.
  explicit StartedWith(const std::filesystem::path& folder) : file_((folder / "training.safetensors").string()) {
    if (!minimamba::is_there(file_)) {
      throw minimamba::FileError(file_, "no such file: there is no training run to continue");
    }
    minimamba::TensorSet tensors;
    minimamba::read_safetensors(minimamba::ByteSource::open(std::filesystem::path(file_)), tensors);
    constexpr std::string_view setting = "setting.", model = "model.", adapter = ".weight.lora_A";
    for (const auto& [name, tensor] : tensors.tensors()) {
      if (name.starts_with(setting) && tensor.dtype == minimamba::DType::F64 && tensor.size() == 1) {
        tensors.read(tensor, 0, std::span(&settings_[name.substr(setting.size())], 1));
      } else if (name.starts_with(model) && name.ends_with(adapter) && tensor.shape.size() == 2) {
        const std::string matrix = name.substr(0, name.size() - adapter.size());
        targets_.insert(matrix.substr(matrix.rfind('.') + 1));
        rank_ = std::min(tensor.shape[0], tensor.shape[1]);
      }
    }
  }

  const std::string& file() const { return file_; }
  std::optional<double> find(const std::string& setting) const {
    const auto place = settings_.find(setting);
    return place == settings_.end() ? std::nullopt : std::optional(place->second);
  }
  /// The backend and its instruction set, or the kind of card; empty if the file lacks them.
  std::string kernels() const {
    constexpr std::string_view key = "backend ";
    const auto place = settings_.lower_bound(std::string(key));
    return place == settings_.end() || !place->first.starts_with(key) ? "" : place->first.substr(key.size());
  }
  /// The rank of the run's adapters, 0 if it has none, and the matrices that have one, with commas between them.
  std::uint64_t rank() const { return rank_; }
  std::string targets() const {
    std::string all;
    for (const std::string& target : targets_) all += (all.empty() ? "" : ",") + target;
    return all;
  }

  /// Gives an option that was not given the run's value, and remembers one that differs from it. A setting that the
  /// file lacks is `absent`.
  void take(CLI::App& app, const char* option, const char* setting, std::optional<double> absent = {}) {
    const std::optional<double> found = find(setting), started = found ? found : absent;
    if (!started) return;
    CLI::Option& given = *app.get_option(option);
    if (given.count() == 0) return set(given, text_of(*started));
    if (given.as<double>() != *started) others_ += std::string(" ") + option + " " + shown(*started);
  }
  /// The same for a text.
  void take_text(CLI::App& app, const char* option, const std::string& started) {
    CLI::Option& given = *app.get_option(option);
    if (given.count() == 0) return set(given, started);
    if (given.as<std::string>() != started) others_ += std::string(" ") + option + " " + started;
  }
  /// The same for a switch.
  void take_flag(CLI::App& app, const char* option, bool started) {
    CLI::Option& given = *app.get_option(option);
    if (given.count() == 0 && started) return set(given, "true");
    if (given.count() > 0 && given.as<bool>() != started) others_ += std::string(started ? " " : " no ") + option;
  }
  /// The same for the number of steps, of which more may be asked for.
  void take_steps(CLI::App& app) {
    const CLI::Option& given = *app.get_option("--steps");
    const bool extends = given.count() > 0 && given.as<double>() > find("steps").value_or(0);
    if (!extends) take(app, "--steps", "steps");
  }
  /// Throws ArgumentError if options were given that differ from those of the run, with all of them.
  void check() const {
    if (others_.empty()) return;
    throw minimamba::ArgumentError(file_,
                                   "this training run was started with" + others_ + ": give the same, or none of them");
  }

 private:
  static bool is_integer(double x) { return x == std::floor(x) && std::abs(x) < 9007199254740992.0; }  // 2^53
  static std::string shown(double x) {
    return is_integer(x) ? std::to_string(static_cast<std::int64_t>(x)) : minimamba::number_text(x);
  }
  /// A number as an option takes it; fractions in hexadecimal, which are read to the last bit.
  static std::string text_of(double x) {
    if (is_integer(x)) return std::to_string(static_cast<std::int64_t>(x));
    char text[64];
    std::snprintf(text, sizeof text, "%a", x);
    return text;
  }
  /// As if it had been given. Throws CLI::Error for a value that the option does not take.
  static void set(CLI::Option& option, const std::string& text) {
    option.add_result(text);
    option.run_callback();
  }

  std::string file_, others_;  // others_: options that were given and differ, with the run's values
  std::map<std::string, double> settings_;
  std::set<std::string> targets_;
  std::uint64_t rank_ = 0;
};

}  // namespace program

#endif
