// A training run of `train`: the model, its checkpoints, progress and samples.
#ifndef MINIMAMBA_EXAMPLES_TRAINING_RUN_HPP
#define MINIMAMBA_EXAMPLES_TRAINING_RUN_HPP

#include <minimamba/io/adapter.hpp>
#include <minimamba/distributed/data_parallel.hpp>
#include <minimamba/generate/generate.hpp>
#include <minimamba/text/streaming_decoder.hpp>
#include <minimamba/train/trainer.hpp>
#include <minimamba/train/checkpoint.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "ranks.hpp"
#include "report.hpp"
#include "terminal.hpp"
#include "training_options.hpp"
#include "training_text.hpp"
#include "vocabulary.hpp"

namespace training {

namespace fs = std::filesystem;
using program::interrupted;
using program::read_file;
using program::stop;

inline void write_file(const fs::path& path, const std::string& text) {
  minimamba::AtomicFile file(path);
  file.write(text);
  file.commit();
}

/// Prints to standard output, on the first rank. A closed pipe is ignored, because the result is the model; other
/// failures throw FileError.
void say(const char* format, auto... values) {
  if (!program::ranks().first()) return;
  char text[400];
  std::snprintf(text, sizeof text, format, values...);
  program::print(text);
}

/// Shows the progress: a line that overwrites itself on a terminal, elsewhere one line every ten steps.
class Progress {
 public:
  explicit Progress(std::int64_t begin) : first_(begin) {}

  void show(const minimamba::StepRecord& record, const minimamba::TrainerOptions& options) {
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count() - paused_;
    const double rate = static_cast<double>(record.step - first_) / std::max(seconds, 1e-9);
    const auto left = static_cast<long>(static_cast<double>(options.schedule.steps - record.step) / rate);
    char text[200];
    std::snprintf(
        text, sizeof(text), "step %lld/%lld  loss %.4f%s  %.0f tokens/s  %ld:%02ld:%02ld left",
        static_cast<long long>(record.step), static_cast<long long>(options.schedule.steps), record.loss,
        std::isnan(record.validation_loss)
            ? ""
            : ("  validation " + minimamba::number_text(std::round(record.validation_loss * 1e4) / 1e4)).c_str(),
        rate * static_cast<double>(options.batch * options.length * options.accumulate * options.micro_batches),
        left / 3600, left / 60 % 60, left % 60);
    last_ = text;
    line_.show(last_);
    if (record.step == options.schedule.steps || (!terminal_ && record.step % 10 == 0)) end_line();
  }
  /// Keeps the last line, so that other output can follow it.
  void end_line() {
    line_.clear();
    if (!last_.empty()) program::print(std::exchange(last_, {}) + "\n");
  }

  /// Runs body() without counting its time as training.
  template <class Body>
  void pause(Body&& body) {
    const auto begin = std::chrono::steady_clock::now();
    body();
    paused_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

 private:
  std::int64_t first_;
  double paused_ = 0;
  bool terminal_ = program::is_terminal(1) && program::is_terminal(2);
  std::string last_;
  program::LiveLine line_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// The ranks that train on a backend: see training_cards.hpp.
template <class Backend>
struct RanksOn {
  using Type = program::Ranks;
  static Type all(const Arguments&, const Backend&) { return program::ranks(); }
};

template <class Model>
class Program {
 public:
  /// config: of a new model, but for the size of the vocabulary.
  Program(const Arguments& arguments, const std::optional<minimamba::Checkpoint>& init,
          const typename Model::Config& config)
      : arguments_(arguments),
        vocabulary_(program::find_vocabulary(arguments.tokenizer, init, "--init " + arguments.init)),
        text_(arguments, vocabulary_),
        trainer_(make_model<Model>(arguments, init, config, vocabulary_.tokenizer), text_.windows(), arguments.options),
        together_(RanksOn<Backend>::all(arguments, trainer_.model().backend()), arguments.together),
        checkpoint_(fs::path(arguments.out) / "training.safetensors"),
        prompt_(vocabulary_.tokenizer.encode(arguments.prompt)) {
    if (prompt_.empty()) prompt_.push_back(trainer_.model().config().bos_token_id.value_or(0));
  }

  int run() {
    begin();
    const std::size_t all = trainer_.model().parameter_count(), some = count_trainable(trainer_.model());
    if (some != all) say("%zu of %zu parameters train\n", some, all);
    say("%zu parameters, %zu tokens to train on, %zu to validate on\n", all, trainer_.data().training_size(),
        trainer_.data().validation_size());
    note_if_nothing_overlaps();
    const std::int64_t before = trainer_.steps();
    Progress progress(before);
    if (trainer_.steps() > 0)
      progress.pause([&] { validate_if_due(); });  // it may have been interrupted during its validation
    std::exception_ptr failure;
    bool ends = together_.any(stop);  // on all ranks
    while (!trainer_.ended() && !ends) {
      trainer_.step(together_);
      progress.pause([&] { validate_if_due(); });
      if (first()) failure = report_step(progress);
      if (due(arguments_.save_every)) progress.pause([&] { save_all(); });
      ends = together_.any(stop || failure);
    }
    save_all();  // the model is saved even if nothing can be printed
    if (failure) std::rethrow_exception(failure);
    if (ends) {
      progress.end_line();
      if (first()) {
        program::print("stopped after step " + std::to_string(trainer_.steps()) + "; to go on: " + resuming() + "\n");
      }
    } else if (first()) {
      note_about_the_end(before);
      program::print("saved; to write with it: " + generating() + "\n");
    }
    return ends ? interrupted : 0;
  }

 private:
  using Backend = typename Model::BackendType;
  static constexpr bool is_adapted = !std::is_same_v<typename Model::WeightType, float>;

  /// Makes the folder, and goes on with the training run in it if that is asked for.
  void begin() {
    if (first()) folders_.emplace(fs::path(arguments_.out));
    if (arguments_.resume) {
      resume_training(trainer_, checkpoint_, [&](const std::string& note) {
        if (first()) program::print_note(note);
      });
    } else if (first() && minimamba::is_there(checkpoint_)) {
      throw minimamba::FileError(checkpoint_.string(), "this training run exists already; continue it with --resume");
    }
    if (first()) minimamba::AtomicFile::remove_strays(arguments_.out);
  }

  /// The command by which `generate` writes with what was trained, as a shell takes it.
  std::string generating() const {
    using program::shell_word;
    const std::string out = shell_word(arguments_.out);
    const std::string& prompt = arguments_.prompt == "\n" ? text_.beginning() : arguments_.prompt;
    return shell_word(arguments_.programs + "generate") + " --model " +
           (is_adapted ? shell_word(arguments_.init) + " --adapter " + out : out) +
           (prompt.empty() ? "" : " --prompt " + shell_word(prompt)) + " --temperature 0.8 --min-p 0.1";
  }
  /// The command that goes on with this training run.
  std::string resuming() const {
    using program::shell_word;
    std::string command = shell_word(arguments_.programs + "train") + " --text";
    for (const std::string& text : arguments_.text) command += " " + shell_word(text);
    return command + " --out " + shell_word(arguments_.out) + " --resume" +
           (arguments_.lora_weights == "f32" ? "" : " --lora-weights " + arguments_.lora_weights);
  }

  /// Says what may be wrong with a training run that ends well.
  void note_about_the_end(std::int64_t before) const {
    if (arguments_.resume && trainer_.steps() == before) {
      program::print_note("all " + std::to_string(before) + " steps of this training run are done: give more --steps");
    }
    if (trainer_.history().empty()) return;
    const double loss = trainer_.history().back().loss,
                 guess = std::log(static_cast<double>(trainer_.model().config().vocab_size));
    if (loss <= 1.1 * guess) return;
    program::print_note("the loss of the last step is " + minimamba::number_text(std::round(loss * 1e4) / 1e4) +
                        ", above that of a guess, " + minimamba::number_text(std::round(guess * 1e4) / 1e4) +
                        ": train again with a smaller --lr");
  }

  /// Prints the last step. Returns the error if standard output cannot be written.
  std::exception_ptr report_step(Progress& progress) {
    try {
      const auto& record = trainer_.history().back();
      progress.show(record, trainer_.options());
      if (due(arguments_.sample_every) && !stop) progress.pause([&] { progress.end_line(), sample(); });
    } catch (const minimamba::FileError&) {
      return std::current_exception();
    }
    return nullptr;
  }

  bool due(std::int64_t every) const { return every > 0 && (trainer_.steps() % every == 0 || trainer_.ended()); }

  void validate_if_due() {
    if (!due(arguments_.validate_every) || !std::isnan(trainer_.history().back().validation_loss)) return;
    const bool alone = program::ranks().size() == 1;  // others would wait for a rank that stops
    trainer_.validate(together_, arguments_.validation_batches, [&](double) { return !(stop && alone); });
  }

  bool first() const { return program::ranks().first(); }

  /// Saves the training checkpoint first, so that training can be resumed if anything after it fails.
  void save_all() {
    together_.on_first(trainer_, [&] { save_here(); });
  }
  void save_here() {
    const fs::path out(arguments_.out);
    save_training(trainer_, checkpoint_);
    if constexpr (is_adapted) {
      save_adapter(trainer_.averaged(), out, arguments_.init);
    } else {
      minimamba::save(trainer_.averaged(), out);
    }
    if (!vocabulary_.json.empty()) write_file(out / "tokenizer.json", vocabulary_.json);
    write_file(out / "loss.csv", program::loss_csv(trainer_.history()));
    write_file(out / "loss.svg", program::loss_svg(trainer_.history()));
    folders_->keep();
  }

  /// Says why gradients do not travel in the background, if that was asked for.
  void note_if_nothing_overlaps() const {
    if (!first() || !arguments_.together.overlap || together_.overlaps(trainer_.model())) return;
    const bool on_card = minimamba::BackendTraits<Backend>::on_device;
    program::print_note(std::string("--overlap changes nothing: ") +
                        (program::ranks().size() == 1 ? "there is one rank"
                         : on_card                    ? "gradients on cards travel when all are there"
                                                      : "this MPI lets one thread alone call it"));
  }

  void sample() {
    const auto& model = trainer_.averaged();
    auto cache = model.make_cache();
    minimamba::StreamingDecoder decoder(vocabulary_.tokenizer);
    if (!arguments_.prompt.empty()) decoder.restore({});  // continues a text
    std::string text;
    for (const std::int32_t token :
         minimamba::generate(model, cache, prompt_,
                             {.max_new_tokens = arguments_.sample_tokens, .temperature = 0.8, .ignore_eos = true})) {
      if (stop) break;
      if (token < vocabulary_.tokenizer.size()) text += decoder.push(token);
    }
    program::print("---\n" + program::for_terminal(arguments_.prompt + text) + "\n---\n");
  }

  const Arguments& arguments_;
  program::Vocabulary vocabulary_;
  Text text_;
  minimamba::Trainer<Model> trainer_;
  minimamba::DataParallel<typename RanksOn<Backend>::Type> together_;
  fs::path checkpoint_;
  std::vector<std::int32_t> prompt_;  // of samples
  std::optional<minimamba::MadeFolders> folders_;
};

template <class Model>
int train(const Arguments& arguments, const std::optional<minimamba::Checkpoint>& init,
          const typename Model::Config& config) {
  return Program<Model>(arguments, init, config).run();
}

}  // namespace training

#endif
