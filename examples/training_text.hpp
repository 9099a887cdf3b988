// The texts of a training run as tokens.
#ifndef MINIMAMBA_EXAMPLES_TRAINING_TEXT_HPP
#define MINIMAMBA_EXAMPLES_TRAINING_TEXT_HPP

#include <minimamba/io/file.hpp>
#include <minimamba/io/folders.hpp>
#include <minimamba/train/data.hpp>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "training_options.hpp"
#include "vocabulary.hpp"

namespace training {

/// The tokens of the texts of --text, one after the other: in memory, or if they are larger than --memory in files,
/// from which they are read when they are asked for. It must outlive the windows. All ranks make one at the same time.
class Text {
 public:
  Text(const Arguments& arguments, const program::Vocabulary& vocabulary);
  Text(const Text&) = delete;
  Text& operator=(const Text&) = delete;
  ~Text();

  /// Throws ArgumentError, which names options that would help, if the text is too short.
  minimamba::TokenWindows windows();
  /// The first words of the text, for a prompt; empty if it begins with other signs.
  const std::string& beginning() const { return beginning_; }

 private:
  void encode(const minimamba::Tokenizer& tokenizer);
  void keep_beginning(const minimamba::Tokenizer& tokenizer);
  std::filesystem::path tokens_file() const;
  void remove_file();

  const Arguments& arguments_;
  std::vector<std::int32_t> tokens_;              // of a text in memory
  std::optional<minimamba::TokenSource> source_;  // of a larger one
  std::optional<minimamba::MadeFolders> folders_;
  std::string beginning_;
  std::filesystem::path file_;  // of tokens that are no bytes, if this rank has written it; removed at the end
};

}  // namespace training

#endif
