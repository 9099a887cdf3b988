// What tests of files share: a folder that goes away, whole files as text, a disk that is full, checkpoints to spoil.
// POSIX only: on Windows the tests that include this are not built.
#ifndef MINIMAMBA_TESTS_FILES_HPP
#define MINIMAMBA_TESTS_FILES_HPP

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "minimamba/io.hpp"
#include "support/support.hpp"

namespace support {

namespace fs = std::filesystem;

/// A folder that is gone when the test ends.
class Folder {
 public:
  Folder() : path_(fs::temp_directory_path() / ("minimamba-test-" + std::to_string(::getpid()) + "-" + next())) {
    fs::create_directories(path_);
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  fs::path operator/(const std::string& name) const { return path_ / name; }
  const fs::path& path() const { return path_; }

 private:
  static std::string next() {
    static int count = 0;
    return std::to_string(++count);
  }
  fs::path path_;
};

inline std::string read_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}
/// The names in a folder.
inline std::set<std::string> names_in(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename().string());
  return names;
}
inline void write_text(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

/// Everything in a folder: names, kinds, and the bytes of files.
inline std::map<std::string, std::string> contents(const fs::path& folder) {
  std::map<std::string, std::string> all;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    const auto status = entry.symlink_status();
    const bool large = fs::is_regular_file(status) && entry.file_size() > 1'000'000;
    all[entry.path().string()] =
        std::to_string(static_cast<int>(status.type())) + (large ? std::to_string(entry.file_size())
                                                           : fs::is_regular_file(status) ? read_text(entry.path())
                                                                                         : "");
  }
  return all;
}

/// While it lives, no file of the process may grow beyond a number of bytes: a disk that is full.
class FullDisk {
 public:
  explicit FullDisk(rlim_t most) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit limit{most, old_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FullDisk() {
    ::setrlimit(RLIMIT_FSIZE, &old_);
    std::signal(SIGXFSZ, handler_);
  }
  FullDisk(const FullDisk&) = delete;
  FullDisk& operator=(const FullDisk&) = delete;

 private:
  void (*handler_)(int);
  rlimit old_{};
};

/// A safetensors file of a header and what follows it.
inline std::string safetensors_file(const std::string& header, const std::string& data = "") {
  const std::uint64_t length = header.size();
  std::string file(sizeof(length), '\0');
  std::memcpy(file.data(), &length, sizeof(length));
  return file + header + data;
}

/// Replaces `from`, which must be there.
inline void replace(std::string& text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  ASSERT_NE(at, text.npos) << from << " is not in " << text;
  text.replace(at, from.size(), to);
}

/// The model that is saved and then spoilt, and what of it a refusal must leave alone.
using Model = minimamba::Mamba<float, minimamba::ReferenceBackend>;
inline minimamba::MambaConfig tiny_config() {
  return {.d_model = 8, .n_layer = 2, .vocab_size = 11, .d_state = 3, .d_conv = 4, .dt_rank = 2};
}

/// One row of a table of refusals: a folder with a saved model is changed, load() must refuse it with an error of this
/// kind, and the message must have these words.
struct Refusal {
  std::string name;
  std::function<void(const Folder&)> change;
  bool (*kind)(const minimamba::Error&);
  std::vector<std::string> words;
  std::string path = "";  // what is loaded, within the folder

  friend std::ostream& operator<<(std::ostream& out, const Refusal& row) { return out << row.name; }
};

template <class E>
bool is(const minimamba::Error& error) {
  return dynamic_cast<const E*>(&error) != nullptr;
}

inline void expect_words(const std::string& message, const std::vector<std::string>& words) {
  for (const auto& word : words) EXPECT_NE(message.find(word), message.npos) << "\"" << word << "\": " << message;
  EXPECT_LT(message.size(), 1000U) << message.substr(0, 2000);
  EXPECT_TRUE(std::all_of(message.begin(), message.end(), [](char c) { return c >= ' ' && c <= '~'; })) << message;
}

/// Loads over a model that is in use: it, its cache and the folder must be as before.
inline void expect_refused(const Refusal& row) {
  const Folder folder;
  minimamba::save(Model(tiny_config()), folder.path());
  row.change(folder);
  Model model = trained_looking_model<Model>(tiny_config());
  auto cache = model.make_cache();
  const std::vector<std::int32_t> tokens{3, 1, 4};
  const auto logits = copy_of(model.forward(tokens, cache));
  const auto state = states(cache);
  const auto files = contents(folder.path());
  try {
    model = minimamba::load<Model>(row.path.empty() ? folder.path() : folder / row.path);
    ADD_FAILURE() << "accepted";
  } catch (const minimamba::Error& error) {
    EXPECT_TRUE(row.kind(error)) << "an error of another kind: " << error.what();
    expect_words(error.what(), row.words);
  }
  EXPECT_EQ(contents(folder.path()), files);
  for (std::size_t i = 0; i < state.size(); ++i) EXPECT_TRUE(identical(state[i], states(cache)[i]));
  auto again = model.make_cache();
  EXPECT_TRUE(identical(copy_of(model.forward(tokens, again)), logits));
}

// What may lie where a file should.
inline void make_fifo(const fs::path& path) { ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0); }
inline void make_loop(const fs::path& path) { fs::create_symlink(path.filename(), path); }
inline void make_dangling(const fs::path& path) { fs::create_symlink("gone", path); }
inline void make_folder(const fs::path& path) { fs::create_directory(path); }
inline void make_nothing(const fs::path&) {}

// Ways to change the folder.
using Change = std::function<void(const Folder&)>;

inline Change write(const std::string& name, const std::string& text) {
  return [=](const Folder& folder) { write_text(folder / name, text); };
}
/// Puts something else where a file was.
inline Change instead_of(const std::string& name, const std::function<void(const fs::path&)>& make) {
  return [=](const Folder& folder) {
    fs::remove(folder / name);
    make(folder / name);
  };
}
inline Change config_text(const std::string& from, const std::string& to) {
  return [=](const Folder& folder) {
    std::string text = read_text(folder / "config.json");
    replace(text, from, to);
    write_text(folder / "config.json", text);
  };
}
inline Change config_with(const std::string& key, const nlohmann::json& value) {
  return [=](const Folder& folder) {
    auto config = nlohmann::json::parse(read_text(folder / "config.json"));
    config[key] = value;
    write_text(folder / "config.json", config.dump());
  };
}
/// Replaces a part of the header's text; `more` follows the data.
inline Change header_text(const std::string& from, const std::string& to, const std::string& more = "") {
  return [=](const Folder& folder) {
    const std::string file = read_text(folder / "model.safetensors");
    std::uint64_t length = 0;
    std::memcpy(&length, file.data(), sizeof(length));
    std::string header = file.substr(sizeof(length), length);
    replace(header, from, to);
    write_text(folder / "model.safetensors", safetensors_file(header, file.substr(sizeof(length) + length) + more));
  };
}

}  // namespace support

#ifndef MINIMAMBA_TEST_CUDA
SUPPORT_NATIVE_MODELS(SUPPORT_MODEL_FILES, extern);
SUPPORT_EIGEN_MODELS(SUPPORT_MODEL_FILES, extern);
SUPPORT_REFERENCE_MODELS(SUPPORT_MODEL_FILES, extern);
#endif

#endif
