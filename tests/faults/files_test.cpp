// Loading and saving when memory runs out, a read fails or a file cannot be renamed: an error that says so, and every
// object and file as it was.
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "minimamba/text.hpp"
#include "support/faults.hpp"
#include "support/files.hpp"
#include "support/measured.hpp"

namespace files_test {

using namespace minimamba;
using support::contents;
using support::FaultyCall;
using support::Folder;
using support::identical;
using support::Model;
using support::Outcome;
namespace fs = std::filesystem;

const fs::path data_folder = GOLDEN_FOLDER;
constexpr long step = support::under_a_sanitizer ? 7 : 1;  // from one failing allocation to the next

MambaConfig other_config() {
  MambaConfig config = support::tiny_config();
  config.d_model = 32;  // a whole block of numbers
  return config;
}
auto logits_of(const Model& model) {
  auto cache = model.make_cache();
  return support::copy_of(model.forward(std::vector<std::int32_t>{3, 1, 4}, cache));
}
Model model_to_save() { return support::trained_looking_model<Model>(other_config()); }

/// Writes an index beside the model: all tensors in its one file.
void write_index(const Folder& folder) {
  TensorSet set;
  read_safetensors(ByteSource::open(folder / "model.safetensors"), set);
  JsonWriter json;
  json.open('{').key("weight_map").open('{');
  for (const auto& [name, tensor] : set.tensors()) json.key(name).value("model.safetensors");
  support::write_text(folder / "index.json", json.close('}').close('}').text());
}

/// Something that can be loaded: made in a folder, whose path is returned.
struct Source {
  std::string name;
  std::function<fs::path(const Folder&)> make;
  friend std::ostream& operator<<(std::ostream& out, const Source& source) { return out << source.name; }
};
Source saved(const std::string& name, std::function<fs::path(const Folder&)> then) {
  return {name, [=](const Folder& folder) {
            save(model_to_save(), folder.path());
            return then(folder);
          }};
}
Source gguf(const std::string& name, std::optional<DType> type) {
  return {name, [=](const Folder& folder) {
            save_gguf(model_to_save(), folder / "model.gguf", {.matrices = type});
            return folder / "model.gguf";
          }};
}
Source golden(const std::string& name, const char* path) {
  return {name, [=](const Folder&) { return data_folder / path; }};
}

class Loading : public testing::TestWithParam<Source> {
 protected:
  /// The model that is assigned to, which a failure must leave alone.
  Model model = support::trained_looking_model<Model>(support::tiny_config());
  const Model before = model.clone();
  const Folder folder;
  const fs::path path = GetParam().make(folder);
};

TEST_P(Loading, LeavesTheOldModelWhenMemoryRunsOut) {
  const auto old_logits = logits_of(before), new_logits = logits_of(load<Model>(path));
  support::with_each_allocation_failing([&] { model = load<Model>(path); },
                                        [&](bool threw) {
                                          EXPECT_TRUE(identical(logits_of(model), threw ? old_logits : new_logits));
                                          model = before.clone();
                                        },
                                        step);
}

TEST_P(Loading, SaysWhichFileCannotBeRead) {
  const auto old_logits = logits_of(before);
  for (const Outcome outcome : {Outcome::fails, Outcome::end}) {
    bool happened = true;
    for (long index = 0; happened && !HasFailure(); ++index) {
      const FaultyCall call(FaultyCall::pread, index, outcome);
      try {
        model = load<Model>(path);
        happened = call.happened();
        EXPECT_FALSE(happened) << "read " << index << " is not missed";
        EXPECT_GT(index, 3) << "is pread replaced?";
      } catch (const FileError& error) {
        support::expect_words(error.what(),
                              {path.parent_path().string(), outcome == Outcome::end ? "shorter" : "error"});
        EXPECT_TRUE(identical(logits_of(model), old_logits));
      }
    }
    model = before.clone();
  }
}

TEST_P(Loading, ContinuesAfterAShortRead) {
  const auto logits = logits_of(load<Model>(path));
  bool happened = true;
  for (long index = 0; happened && !HasFailure(); ++index) {
    const FaultyCall call(FaultyCall::pread, index, Outcome::half);
    EXPECT_TRUE(identical(logits_of(load<Model>(path)), logits)) << index;
    happened = call.happened();
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, Loading,
                         testing::Values(saved("Safetensors", [](const Folder& folder) { return folder.path(); }),
                                         saved("ShardedSafetensors",
                                               [](const Folder& folder) {
                                                 write_index(folder);
                                                 return folder / "index.json";
                                               }),
                                         golden("Torch", "torch/tied"), golden("ShardedTorch", "torch/sharded"),
                                         gguf("Gguf", DType::F32), gguf("QuantisedGguf", DType::Q8_0),
                                         golden("OfficialLayout", "odd-official")),
                         [](const auto& row) { return row.param.name; });

/// The parameters of a module on their way in, as load_parameters reads them.
class LoadingParameters : public testing::Test {
 protected:
  LoadingParameters() { save_parameters(other, other.backend(), folder / "file"); }
  void load() {
    load_parameters(model, model.backend(), folder / "file");
    model.refresh();
  }

  const Folder folder;
  const Model other = support::trained_looking_model<Model>(support::tiny_config(), 4);
  Model model = support::trained_looking_model<Model>(support::tiny_config());
  const Model before = model.clone();
};

TEST_F(LoadingParameters, LeavesTheModuleWhenMemoryRunsOut) {
  const auto old_logits = logits_of(before), loaded = logits_of(other);
  EXPECT_FALSE(identical(old_logits, loaded));
  support::with_each_allocation_failing([&] { load_parameters(model, model.backend(), folder / "file"); },
                                        [&](bool threw) {
                                          model.refresh();
                                          EXPECT_TRUE(identical(logits_of(model), threw ? old_logits : loaded));
                                          model = before.clone();
                                        },
                                        step);
}

TEST_F(LoadingParameters, LeavesTheModuleWhenAReadFails) {
  const auto old_logits = logits_of(before), loaded = logits_of(other);
  bool happened = true;
  for (long index = 0; happened && !HasFailure(); ++index) {
    const FaultyCall call(FaultyCall::pread, index, Outcome::fails);
    try {
      load();
      happened = call.happened();
      EXPECT_FALSE(happened) << "read " << index << " is not missed";
      EXPECT_GT(index, 3) << "is pread replaced?";
      EXPECT_TRUE(identical(logits_of(model), loaded));
    } catch (const FileError& error) {
      support::expect_words(error.what(), {(folder / "file").string(), "error"});
      EXPECT_TRUE(identical(logits_of(model), old_logits));
    }
  }
}

/// Something that saves into a folder.
struct Saving {
  std::string name;
  std::function<void(const fs::path&)> save;
  friend std::ostream& operator<<(std::ostream& out, const Saving& saving) { return out << saving.name; }
};

const ByteSource& carried_file() {
  static const std::string text = "{}";
  static const ByteSource source(std::as_bytes(std::span(text)), "tokenizer.json");
  return source;
}
const Model& new_model() {
  static const Model model = model_to_save();
  return model;
}
/// Opened anew each time: a checkpoint holds the file that it comes from.
void save_checkpoint(const fs::path& folder) {
  save(open_checkpoint(data_folder / "torch" / "tied"), folder, {.files = {{"tokenizer.json", carried_file()}}});
}

class SavingFiles : public testing::TestWithParam<Saving> {
 protected:
  SavingFiles() {
    GetParam().save(scratch.path());
    after = names_and_bytes(scratch.path());
  }
  static std::map<std::string, std::string> names_and_bytes(const fs::path& folder) {
    std::map<std::string, std::string> all;
    for (const auto& entry : fs::directory_iterator(folder)) {
      all[entry.path().filename().string()] = support::read_text(entry.path());
    }
    return all;
  }
  /// Files of the same names, with other contents.
  void put_old_files() {
    for (const auto& entry : fs::directory_iterator(folder.path())) fs::remove(entry.path());
    for (const auto& [name, text] : after) support::write_text(folder / name, "old " + name);
    before = names_and_bytes(folder.path());
  }

  const Folder folder, scratch;
  std::map<std::string, std::string> before, after;
};

TEST_P(SavingFiles, LeavesTheOldOnesWhenMemoryRunsOut) {
  put_old_files();
  support::with_each_allocation_failing([&] { GetParam().save(folder.path()); },
                                        [&](bool threw) {
                                          EXPECT_EQ(names_and_bytes(folder.path()), threw ? before : after);
                                          if (!threw) put_old_files();
                                        },
                                        step);
}

TEST_P(SavingFiles, MakesNoFolderWhenMemoryRunsOut) {
  support::with_each_allocation_failing([&] { GetParam().save(folder / "a" / "b"); },
                                        [&](bool threw) {
                                          EXPECT_EQ(fs::exists(folder / "a"), !threw);
                                          fs::remove_all(folder / "a");
                                        },
                                        3);
}

TEST_P(SavingFiles, LeavesTheOldOnesOrAllNewOnesWhenARenameFails) {
  bool happened = true;
  for (long index = 0; happened && !HasFailure(); ++index) {
    put_old_files();
    try {
      const FaultyCall call(FaultyCall::rename, index, Outcome::fails);
      GetParam().save(folder.path());
      happened = call.happened();
      EXPECT_FALSE(happened) << "rename " << index << " is not missed";
      EXPECT_GT(index, 0) << "is rename replaced?";
      EXPECT_EQ(names_and_bytes(folder.path()), after);
    } catch (const FileError& error) {
      support::expect_words(error.what(), {folder.path().string(), "error"});
      if (index <= 1) {
        EXPECT_EQ(names_and_bytes(folder.path()), before) << "the list's own name, or the first file's: all is undone";
      } else {  // one has its new name already, so all have
        for (const auto& [name, text] : after) {
          const ByteSource source = ByteSource::open(folder / name);
          std::string found(source.size(), '\0');
          source.read(0, std::as_writable_bytes(std::span(found)));
          EXPECT_EQ(found, text) << name;
        }
      }
    }
    GetParam().save(folder.path());  // whatever was left, this ends it
    EXPECT_EQ(names_and_bytes(folder.path()), after);
  }
}

TEST_P(SavingFiles, LeavesTheOldOnesWhenTheDiskFails) {
  bool happened = true;
  for (long index = 0; happened && !HasFailure(); ++index) {
    put_old_files();
    try {
      const FaultyCall call(FaultyCall::fsync, index, Outcome::fails);
      GetParam().save(folder.path());
      happened = call.happened();  // or it was the folder that could not be brought to the disk: not all systems can
      EXPECT_EQ(names_and_bytes(folder.path()), after);
    } catch (const FileError& error) {
      support::expect_words(error.what(), {folder.path().string(), "error"});
      EXPECT_EQ(names_and_bytes(folder.path()), before);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Targets, SavingFiles,
    testing::Values(Saving{"Model", [](const fs::path& folder) { save(new_model(), folder); }},
                    Saving{"Checkpoint", save_checkpoint},
                    Saving{"Gguf", [](const fs::path& folder) { save_gguf(new_model(), folder / "model.gguf"); }},
                    Saving{"QuantisedGguf",
                           [](const fs::path& folder) {
                             save_gguf(new_model(), folder / "model.gguf", {.matrices = DType::Q8_0});
                           }}),
    [](const auto& row) { return row.param.name; });

TEST(AState, IsSavedWholeOrNotAtAll) {
  const Folder folder;
  const Model& model = new_model();
  auto cache = model.make_cache();
  const auto state = folder / "state";
  support::write_text(state, "old");
  support::with_each_allocation_failing(
      [&] {
        save_state(model, cache, state, {{"name", "contents"}});
      },
      [&](bool threw) {
        EXPECT_EQ(support::read_text(state) == "old", threw);
        EXPECT_EQ(contents(folder.path()).size(), 1U);
        support::write_text(state, "old");
      });
}

TEST(AState, IsLoadedWholeOrNotAtAll) {
  const Folder folder;
  const Model& model = new_model();
  auto cache = model.make_cache();
  model.forward(std::vector<std::int32_t>{3, 1, 4}, cache);
  save_state(model, cache, folder / "state", {{"name", "contents"}});
  SavedState<Model> saved{model.make_cache(), {}};
  support::with_each_allocation_failing([&] { saved = load_state(folder / "state", model); },
                                        [&](bool threw) {
                                          EXPECT_EQ(saved.sections.empty(), threw);
                                          EXPECT_EQ(saved.cache.position(0), threw ? 0 : 3);
                                          saved = {model.make_cache(), {}};
                                        });
  for (const Outcome outcome : {Outcome::fails, Outcome::end}) {
    const FaultyCall call(FaultyCall::pread, 1, outcome);
    EXPECT_THROW(load_state(folder / "state", model), FileError);
  }
}

class ATokenizer : public testing::Test {
 protected:
  const fs::path path = data_folder / "../../fuzz/corpus/tokenizer/small.json";
  const std::string text = "Hello,  world! \xC3\xA9\xC3\xA8 caf\x65\xCC\x81 12345";
  const std::vector<std::int32_t> ids = Tokenizer::load(path).encode(text);
  const std::string decoded = Tokenizer::load(path).decode(ids);
};

TEST_F(ATokenizer, IsLoadedWholeOrNotAtAll) {
  const Tokenizer bytes = Tokenizer::bytes();
  Tokenizer tokenizer = bytes;
  const auto byte_ids = bytes.encode(text);
  support::with_each_allocation_failing([&] { tokenizer = Tokenizer::load(path); },
                                        [&](bool threw) {
                                          EXPECT_EQ(tokenizer.encode(text), threw ? byte_ids : ids);
                                          tokenizer = bytes;
                                        },
                                        7);
}

TEST_F(ATokenizer, EncodesAndDecodesOrSaysThatItCannot) {
  const Tokenizer tokenizer = Tokenizer::load(path);
  std::vector<std::int32_t> encoded;
  support::with_each_allocation_failing([&] { encoded = tokenizer.encode(text); },
                                        [&](bool threw) {
                                          EXPECT_EQ(encoded, threw ? std::vector<std::int32_t>() : ids);
                                          encoded.clear();
                                        });
  std::string again;
  support::with_each_allocation_failing([&] { again = tokenizer.decode(ids); },
                                        [&](bool threw) {
                                          EXPECT_EQ(again, threw ? "" : decoded);
                                          again.clear();
                                        });
}

TEST_F(ATokenizer, TravelsThroughGgufAndBack) {
  const auto parts = read_tokenizer_json(ByteSource::open(path));
  std::vector<std::string> tokens;
  support::with_each_allocation_failing(
      [&] {
        const GgufMetadata metadata = gguf_tokenizer(parts, 0), copy = metadata;
        tokens = gguf_tokenizer(copy, "a file").tokens;
      },
      [&](bool threw) {
        EXPECT_EQ(tokens.empty(), threw);
        tokens.clear();
      },
      7);
  std::string json;
  support::with_each_allocation_failing([&] { json = tokenizer_json(parts); },
                                        [&](bool threw) {
                                          EXPECT_EQ(json.empty(), threw);
                                          json.clear();
                                        });
}

}  // namespace files_test
