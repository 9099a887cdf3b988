// Saving to a full disk or an impossible place: a typed error that names the place, and everything as it was.
#include "support/files.hpp"

namespace refused_saves_test {

using namespace minimamba;
using support::contents;
using support::copy_of;
using support::Folder;
using support::FullDisk;
using support::Model;
namespace fs = std::filesystem;

struct Place {
  std::string name;
  std::function<void(const Folder&)> make;
  std::string target;  // within the folder
  std::vector<std::string> words;
  friend std::ostream& operator<<(std::ostream& out, const Place& place) { return out << place.name; }
};

/// Saves a model over what is there; it must be refused with these words and change nothing, the model included.
void expect_refused(const fs::path& root, const fs::path& target, const std::vector<std::string>& words) {
  const Model model = support::trained_looking_model<Model>(support::tiny_config());
  const std::vector<std::int32_t> tokens{3, 1, 4};
  auto cache = model.make_cache(), again = model.make_cache();
  const auto logits = copy_of(model.forward(tokens, cache));
  const auto before = contents(root);
  try {
    save(model, target);
    ADD_FAILURE() << "accepted";
  } catch (const FileError& error) {
    support::expect_words(error.what(), words);
  }
  EXPECT_EQ(contents(root), before);
  EXPECT_TRUE(support::identical(copy_of(model.forward(tokens, again)), logits));
}

class RefusedPlaces : public testing::TestWithParam<Place> {};

TEST_P(RefusedPlaces, AreNamedAndLeaveEverythingAsItWas) {
  const Folder folder;
  save(Model(support::tiny_config()), folder / "model");
  GetParam().make(folder);
  expect_refused(folder.path(), folder / GetParam().target, GetParam().words);
}

std::function<void(const Folder&)> replaced(const std::string& name, void (*make)(const fs::path&)) {
  return [=](const Folder& folder) {
    fs::remove_all(folder / name);
    make(folder / name);
  };
}
void nothing(const Folder&) {}
const std::string weights = "model/model.safetensors", config = "model/config.json";

INSTANTIATE_TEST_SUITE_P(
    Saving, RefusedPlaces,
    testing::Values(
        Place{"AFile", nothing, weights, {"model.safetensors", "the folder cannot be created"}},
        Place{"BelowAFile", nothing, weights + "/x/y", {"/x/y", "the folder cannot be created", "Not a directory"}},
        Place{"AFifo", replaced("pipe", support::make_fifo), "pipe", {"/pipe", "the folder cannot be created"}},
        Place{"ALinkToItself", replaced("loop", support::make_loop), "loop", {"/loop", "the folder cannot be created"}},
        Place{"ADanglingLink",
              replaced("link", support::make_dangling),
              "link",
              {"/link", "the folder cannot be created"}},
        Place{"WeightsAreAFolder", replaced(weights, support::make_folder), "model", {weights, "regular", "a folder"}},
        Place{"WeightsAreAFifo", replaced(weights, support::make_fifo), "model", {weights, "regular", "special"}},
        Place{
            "ConfigurationIsAFolder", replaced(config, support::make_folder), "model", {config, "regular", "a folder"}},
        Place{"ConfigurationIsAFifo", replaced(config, support::make_fifo), "model", {config, "regular", "special"}},
        Place{"NameTooLong",
              nothing,
              "model/" + std::string(300, 'n'),
              {"/nnn", "the folder cannot be created", "too long"}},
        Place{"NameTooLongBelowANewFolder",
              nothing,
              "new/" + std::string(300, 'n'),
              {"/nnn", "the folder cannot be created", "too long"}}),
    [](const testing::TestParamInfo<Place>& row) { return row.param.name; });

TEST(SavingToAFullDisk, LeavesTheOldFilesWhereverItIsFull) {
  const Folder folder;
  save(Model(support::tiny_config()), folder.path());
  for (const rlim_t room : {0U, 1U, 8U, 2000U, 8327U}) {  // the file of weights has 8,328 bytes
    const FullDisk full(room);
    expect_refused(folder.path(), folder.path(), {"model.safetensors", "cannot be written", "too large"});
  }
}

TEST(SavingToAFullDisk, LeavesNoNewFolders) {
  const Folder folder;
  const FullDisk full(1000);
  expect_refused(folder.path(), folder / "a" / "b", {"a/b/model.safetensors", "cannot be written"});
}

TEST(Saving, AcceptsEveryPathToAFolder) {
  const Folder folder;
  const Model model(support::tiny_config());
  fs::create_directory(folder / "real");
  fs::create_directory_symlink("real", folder / "link");
  for (const fs::path& path :
       {folder / "new" / "folder", folder / "slash" / "", folder / "x" / ".." / "y", folder / "link"}) {
    EXPECT_NO_THROW(save(model, path)) << path;
    EXPECT_NO_THROW(load<Model>(path)) << path;
  }
}

TEST(Saving, RefusesAModelThatWasMovedFrom) {
  const Folder folder;
  Model model(support::tiny_config());
  const Model taken = std::move(model);
  EXPECT_THROW(save(model, folder.path()), ArgumentError);
  EXPECT_TRUE(contents(folder.path()).empty());
}

}  // namespace refused_saves_test
