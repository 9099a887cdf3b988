// What the programs that train a model with a head share: the loop over the steps with a progress line,
// checkpoints and the record of the losses.
#ifndef MINIMAMBA_EXAMPLES_FITTING_HPP
#define MINIMAMBA_EXAMPLES_FITTING_HPP

#include <minimamba/io/pretrained.hpp>
#include <minimamba/io/sequence_files.hpp>
#include <minimamba/nn/adapters.hpp>
#include <minimamba/backend/native_training.hpp>
#include <minimamba/train/checkpoint.hpp>
#include <minimamba/train/sequence_trainer.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "terminal.hpp"
#include "report.hpp"

namespace fitting {

/// The model that trains, with weights in this format, and what it becomes for predictions. Files: of its mixer, such
/// as S6Files.
template <class Files, class Weight = float>
using Model = minimamba::SequenceModelOf<typename Files::template Model<float, minimamba::NativeTraining, Weight>>;
template <class Files, class Weight = float>
using Predictor = minimamba::SequenceModelOf<typename Files::template Model<float, minimamba::NativeBackend, Weight>>;

struct Options {
  std::int64_t d_model = 32, n_layer = 2, d_state = 16, head_dim = 16;
  std::string mixer = "s6";
  minimamba::TrainerOptions training{.batch = 16,
                                     .schedule = {.max_lr = 5e-3, .min_lr = 5e-4, .warmup_steps = 20, .steps = 400}};
  std::int64_t validate_every = 50, validation_batches = 16, save_every = 0;
  int threads = 0;
  std::string out;
  bool resume = false;
};

inline void print(const char* format, auto... values) {
  char text[400];
  std::snprintf(text, sizeof text, format, values...);
  program::print(text);
}

inline void write_file(const std::filesystem::path& path, const std::string& text) {
  minimamba::AtomicFile file(path);
  file.write(text);
  file.commit();
}

/// A training run in the folder --out.
template <class Trainer>
class Fit {
 public:
  /// files: further ones to save with the model.
  Fit(Trainer& trainer, const Options& options, std::vector<std::pair<std::string, minimamba::ByteSource>> files = {})
      : trainer_(trainer),
        options_(options),
        files_(std::move(files)),
        checkpoint_(folder() / "training.safetensors") {}

  /// Trains to the last step, or until Ctrl-C. Returns the exit code.
  int run() {
    minimamba::MadeFolders folders(folder());
    if (options_.resume) {
      resume_training(trainer_, checkpoint_, program::print_note);
    } else if (minimamba::is_there(checkpoint_)) {
      throw minimamba::FileError(checkpoint_.string(), "this training run exists already; continue it with --resume");
    }
    const std::size_t all = trainer_.model().parameter_count(), some = count_trainable(trainer_.model());
    if (some != all) print("%zu of %zu parameters train\n", some, all);
    print("%zu parameters\n", all);
    first_ = trainer_.steps();
    start_ = std::chrono::steady_clock::now();
    while (!trainer_.ended() && !program::stop) {
      trainer_.step();
      const bool validates = due(options_.validate_every);
      if (validates) trainer_.validate(options_.validation_batches, [](double) { return !program::stop; });
      show(validates);
      if (due(options_.save_every)) save();
    }
    save();
    folders.keep();
    line_.clear();
    if (program::stop) {
      print("stopped after step %lld; to go on, give the same data and --out, and --resume\n",
            static_cast<long long>(trainer_.steps()));
    } else if (options_.resume && trainer_.steps() == first_) {
      program::print_note("all " + std::to_string(first_) + " steps of this training run are done: give more --steps");
    }
    return program::stop ? program::interrupted : 0;
  }

 private:
  std::filesystem::path folder() const { return options_.out; }
  std::string unit() const {
    const auto& config = trainer_.model().config();
    if (config.task == minimamba::Task::classification) return "nats per label";
    return config.quantiles.empty() ? "mean squared error" : "the mean quantile loss";
  }
  bool due(std::int64_t every) const { return trainer_.ended() || (every > 0 && trainer_.steps() % every == 0); }

  /// A line that overwrites itself on a terminal; one with a validation stays.
  void show(bool keep) {
    const minimamba::StepRecord& last = trainer_.history().back();
    const double seconds = program::seconds_since(start_);
    const double rate = static_cast<double>(last.step - first_) / std::max(seconds, 1e-9);
    const double left = static_cast<double>(trainer_.options().schedule.steps - last.step) / rate;
    smooth_ = smooth_ < 0 ? last.loss : 0.95 * smooth_ + 0.05 * last.loss;
    char text[200];
    const int size = std::snprintf(text, sizeof text, "step %lld/%lld  loss %.4f", static_cast<long long>(last.step),
                                   static_cast<long long>(trainer_.options().schedule.steps), smooth_);
    std::string all(text, static_cast<std::size_t>(size));
    if (!std::isnan(last.validation_loss)) {
      all += "  validation " + minimamba::number_text(std::round(last.validation_loss * 1e4) / 1e4);
    }
    std::snprintf(text, sizeof text, "  %.1f steps/s  %.0f s left", rate, left);
    all += text;
    if (!keep) return line_.show(all);
    line_.clear();
    program::print(all + "\n");
  }

  /// The training first, so that it can be resumed if anything after it fails.
  void save() {
    save_training(trainer_, checkpoint_);
    minimamba::SaveOptions options;
    options.files = files_;
    using Trained = std::remove_cvref_t<decltype(trainer_.model())>;
    if constexpr (minimamba::detail::is_lora<typename Trained::WeightType>) {
      minimamba::save(merge(trainer_.model()), folder(), options);
    } else {
      minimamba::save(trainer_.model(), folder(), options);
    }
    write_file(folder() / "loss.csv", program::loss_csv(trainer_.history()));
    write_file(folder() / "loss.svg", program::loss_svg(trainer_.history(), unit()));
  }

  Trainer& trainer_;
  const Options& options_;
  std::vector<std::pair<std::string, minimamba::ByteSource>> files_;
  std::filesystem::path checkpoint_;
  program::LiveLine line_;
  std::int64_t first_ = 0;
  double smooth_ = -1;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace fitting

#endif
