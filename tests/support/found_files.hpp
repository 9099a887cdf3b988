// A saved model as other programs may have left it, for tests that change its files: what it computes, and what is
// noted.
#ifndef MINIMAMBA_TESTS_FOUND_FILES_HPP
#define MINIMAMBA_TESTS_FOUND_FILES_HPP

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "support/files.hpp"

namespace support {

inline const std::string weights = "model.safetensors";

/// What a model says to a few tokens.
inline HostMatrix<float> logits_of(const Model& model) {
  auto cache = model.make_cache();
  return copy_of(model.forward(std::vector<std::int32_t>{3, 1, 4}, cache));
}

struct Loaded {
  Model model;
  std::vector<std::string> notes;
};
inline Loaded load_noting(const fs::path& path) {
  std::vector<std::string> notes;
  Model model = minimamba::load<Model>(path, {.on_note = [&](const std::string& note) { notes.push_back(note); }});
  EXPECT_EQ(minimamba::open_checkpoint(path).notes, notes);
  return {std::move(model), notes};
}
/// Exactly one note, which has these words.
inline void expect_note(const std::vector<std::string>& notes, const std::vector<std::string>& words) {
  ASSERT_EQ(notes.size(), 1U) << testing::PrintToString(notes);
  expect_words(notes.front(), words);
}

inline Model tiny() { return trained_looking_model<Model>(tiny_config()); }

/// A saved model, and what it computes.
class FoundFiles : public testing::Test {
 protected:
  FoundFiles() { minimamba::save(tiny(), folder.path()); }
  Loaded expect_same_model() {
    Loaded loaded = load_noting(folder.path());
    EXPECT_TRUE(identical(logits_of(loaded.model), expected));
    return loaded;
  }
  std::string header() const {
    const std::string file = read_text(folder / weights);
    std::uint64_t length = 0;
    std::memcpy(&length, file.data(), sizeof(length));
    return file.substr(sizeof(length), length);
  }
  void write_weights(const std::string& new_header, const std::string& more = "") const {
    const std::string file = read_text(folder / weights);
    write_text(folder / weights,
               safetensors_file(new_header, file.substr(sizeof(std::uint64_t) + header().size()) + more));
  }
  std::vector<std::int32_t> ends() {
    const minimamba::MambaConfig config = load_noting(folder.path()).model.config();
    std::vector<std::int32_t> ids;
    if (config.eos_token_id) ids.push_back(*config.eos_token_id);
    ids.insert(ids.end(), config.other_eos_token_ids.begin(), config.other_eos_token_ids.end());
    return ids;
  }

  Folder folder;
  HostMatrix<float> expected = logits_of(tiny());
};

using Ids = std::vector<std::int32_t>;

inline std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != text.npos; at += to.size()) text.replace(at, from.size(), to);
  return text;
}

/// Entries at the end of the data.
inline std::string entry(const std::string& name, const std::string& type, const std::string& shape, std::size_t begin,
                         std::size_t size) {
  return ",\"" + name + "\":{\"dtype\":\"" + type + "\",\"shape\":" + shape + ",\"data_offsets\":[" +
         std::to_string(begin) + "," + std::to_string(begin + size) + "]}}";
}

}  // namespace support

#endif
