// A program that is killed while it saves: what is loaded afterwards is the whole old model or the whole new one, and
// the next save leaves nothing behind. And the list of files that makes it so, .minimamba-commit, when others wrote it.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <list>
#include <set>
#include <string>
#include <vector>

#include "minimamba/text.hpp"
#include "support/faults.hpp"
#include "support/files.hpp"

namespace killed_saves_test {

using namespace minimamba;
using support::contents;
using support::FaultyCall;
using support::Folder;
using support::identical;
using support::Model;
using support::names_in;
using support::Outcome;
namespace fs = std::filesystem;

/// Models of different sizes: weights of one beside the configuration of another cannot be loaded.
Model model_of_size(std::int64_t d_model) {
  MambaConfig config = support::tiny_config();
  config.d_model = d_model;
  return support::trained_looking_model<Model>(config);
}
auto logits_of(const Model& model) {
  auto cache = model.make_cache();
  return support::copy_of(model.forward(std::vector<std::int32_t>{3, 1, 4}, cache));
}
auto loaded_logits(const fs::path& folder) { return logits_of(load<Model>(folder)); }

SaveOptions with_file(const std::string& text) {
  return {.files = {{"notes.txt", ByteSource(std::as_bytes(std::span(text)), "notes")}}};
}
std::string read_beside(const fs::path& folder) {
  const ByteSource source = ByteSource::open(folder / "notes.txt");
  std::string text(static_cast<std::size_t>(source.size()), '\0');
  source.read(0, std::as_writable_bytes(std::span(text)));
  return text;
}
/// Runs action() in a process of its own, which is killed at call number `index`; whether it was.
bool killed_at(long index, const std::function<void()>& action) {
  const pid_t child = ::fork();
  if (child == 0) {
    try {
      const FaultyCall call(FaultyCall::any, index, Outcome::killed);
      action();
    } catch (...) {
      ::_exit(1);
    }
    ::_exit(0);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  const bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
  EXPECT_TRUE(killed || (WIFEXITED(status) && WEXITSTATUS(status) == 0)) << status;
  return killed;
}

const std::string old_text = "old", new_text = "new", last_text = "last";

/// Saves over an old model and is killed at every step in turn.
void expect_old_or_new(const std::function<void(const fs::path&)>& save_new) {
  const Model old_model = model_of_size(8), last_model = model_of_size(24);
  const auto old_logits = logits_of(old_model), new_logits = logits_of(model_of_size(16));
  int old_ones = 0, new_ones = 0;
  bool killed = true;
  for (long index = 0; killed && !testing::Test::HasFailure(); ++index) {
    SCOPED_TRACE("killed at call " + std::to_string(index));
    const Folder folder;
    save(old_model, folder.path(), with_file(old_text));
    killed = killed_at(index, [&] { save_new(folder.path()); });
    const auto left = contents(folder.path());
    const bool is_new = identical(loaded_logits(folder.path()), new_logits);
    (is_new ? new_ones : old_ones) += 1;
    EXPECT_TRUE(is_new || identical(loaded_logits(folder.path()), old_logits));
    EXPECT_EQ(read_beside(folder.path()), is_new ? new_text : old_text);
    EXPECT_TRUE(is_new || killed);
    EXPECT_EQ(contents(folder.path()), left) << "who only reads changes nothing";
    save(last_model, folder.path(), with_file(last_text));
    EXPECT_EQ(names_in(folder.path()), (std::set<std::string>{"config.json", "model.safetensors", "notes.txt"}));
    EXPECT_TRUE(identical(loaded_logits(folder.path()), logits_of(last_model)));
    EXPECT_EQ(read_beside(folder.path()), last_text);
  }
  EXPECT_GT(old_ones, 3) << "are the system's calls replaced?";
  EXPECT_GT(new_ones, 4);
}

TEST(ASaveThatIsKilled, LeavesTheOldModelOrTheNewOne) {
  const Model model = model_of_size(16);
  expect_old_or_new([&](const fs::path& folder) { save(model, folder, with_file(new_text)); });
}

TEST(ASaveThatIsKilled, LeavesTheOldModelOrTheNewOneOfACheckpoint) {
  const Folder source;
  save(model_of_size(16), source.path());
  const Checkpoint checkpoint = open_checkpoint(source.path());
  expect_old_or_new([&](const fs::path& folder) { save(checkpoint, folder, with_file(new_text)); });
}

TEST(ASaveThatIsKilled, IsCompletedByTheNextEvenIfThatIsKilledToo) {
  const Model old_model = model_of_size(8), new_model = model_of_size(16), last_model = model_of_size(24);
  const auto old_logits = logits_of(old_model), new_logits = logits_of(new_model), last_logits = logits_of(last_model);
  for (long first = 3; first < 9; ++first) {
    bool killed = true;
    for (long second = 0; killed && !HasFailure(); ++second) {
      const Folder folder;
      save(old_model, folder.path());
      killed_at(first, [&] { save(new_model, folder.path()); });
      const auto between = loaded_logits(folder.path());
      EXPECT_TRUE(identical(between, old_logits) || identical(between, new_logits));
      killed = killed_at(second, [&] { save(last_model, folder.path()); });
      const auto after = loaded_logits(folder.path());
      EXPECT_TRUE(identical(after, last_logits) || (killed && identical(after, between))) << first << ", " << second;
    }
  }
}

TEST(ASaveThatIsKilled, IntoANewFolderLeavesAModelOrNone) {
  const Model model = model_of_size(16);
  bool killed = true;
  for (long index = 0; killed && !HasFailure(); ++index) {
    const Folder folder;
    killed = killed_at(index, [&] { save(model, folder / "new"); });
    try {
      EXPECT_TRUE(identical(loaded_logits(folder / "new"), logits_of(model)));
    } catch (const FileError&) {
      EXPECT_TRUE(killed);
      for (const std::string& name : names_in(folder / "new")) EXPECT_TRUE(name.starts_with(".minimamba-")) << name;
    }
    save(model, folder / "new");
    EXPECT_EQ(names_in(folder / "new"), (std::set<std::string>{"config.json", "model.safetensors"}));
  }
}

TEST(ASaveThatIsKilled, LeavesNothingThatTheNextSaveOfAFileDoesNotRemove) {
  const Model model = model_of_size(8);
  auto cache = model.make_cache();
  const std::function<void(const fs::path&)> saves[] = {
      [&](const fs::path& folder) { save_gguf(model, folder / "model.gguf"); },
      [&](const fs::path& folder) { save_state(model, cache, folder / "state"); }};
  for (const auto& save_one : saves) {
    const Folder folder;
    EXPECT_TRUE(killed_at(0, [&] { save_one(folder.path()); }));
    EXPECT_EQ(names_in(folder.path()).size(), 1U) << "a temporary file";
    save_one(folder.path());
    EXPECT_EQ(names_in(folder.path()).size(), 1U);
    EXPECT_FALSE(names_in(folder.path()).begin()->starts_with(".minimamba-"));
  }
}

TEST(ASaveThatIsKilled, KeepsItsFilesWhenASingleFileIsSavedNextToThem) {
  const Model old_model = model_of_size(8), new_model = model_of_size(16);
  const Folder folder;
  save(old_model, folder.path());
  long index = 0;
  do {
    ASSERT_TRUE(killed_at(index++, [&] { save(new_model, folder.path()); }));
  } while (!fs::exists(folder / ".minimamba-commit"));
  support::write_text(folder / ".minimamba-7.tmp", "left by another");
  auto cache = old_model.make_cache();
  save_state(old_model, cache, folder / "state");
  EXPECT_FALSE(fs::exists(folder / ".minimamba-7.tmp"));
  EXPECT_TRUE(identical(loaded_logits(folder.path()), logits_of(new_model)));
}

TEST(TwoPrograms, ThatSaveIntoOneFolderLeaveTheModelOfOne) {
  const Model models[] = {model_of_size(8), model_of_size(16)};
  const Folder folder;
  std::vector<pid_t> children;
  for (const Model& model : models) {
    const pid_t child = ::fork();
    if (child == 0) {
      try {
        for (int i = 0; i < 40; ++i) save(model, folder.path());
      } catch (...) {
        ::_exit(1);
      }
      ::_exit(0);
    }
    children.push_back(child);
  }
  for (const pid_t child : children) {
    int status = -1;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  }
  const auto logits = loaded_logits(folder.path());
  EXPECT_TRUE(identical(logits, logits_of(models[0])) || identical(logits, logits_of(models[1])));
  EXPECT_EQ(names_in(folder.path()), (std::set<std::string>{"config.json", "model.safetensors"}));
}

const std::string title = "minimamba commit 1\n";

TEST(AListOfFilesToRename, IsRefusedUnlessItIsOneOfOurs) {
  std::string many = title;
  for (int i = 0; i < 2000; ++i) many += ".minimamba-" + std::to_string(i) + ".tmp\tnone\tf" + std::to_string(i) + "\n";
  const std::string lists[] = {"",
                               "x",
                               "minimamba commit 2\n",
                               title.substr(0, title.size() - 1),
                               title + ".minimamba-1.tmp\tnone\tconfig.json",
                               title + ".minimamba-1.tmp\n",
                               title + ".minimamba-1.tmp\tnone\t\n",
                               title + "\n",
                               title + "\tnone\tconfig.json\n",
                               title + ".minimamba-1.tmp\tconfig.json\n",
                               title + "config.json\tnone\tmodel.safetensors\n",
                               title + "/etc/passwd\tnone\tconfig.json\n",
                               title + "../.minimamba-1.tmp\tnone\tconfig.json\n",
                               title + ".minimamba-1.tmp\tnone\t../config.json\n",
                               title + ".minimamba-1.tmp\tnone\t..\n",
                               title + ".minimamba-1.tmp\tnone\ta/b\n",
                               title + ".minimamba-1.tmp\tnone\ta\\b\n",
                               title + ".minimamba-1.tmp\tnone\tC:b\n",
                               title + ".minimamba-1.tmp\tnone\ta\tb\n",
                               title + ".minimamba-1.tmp\tnone\t" + std::string(1, '\0') + "\n",
                               title + ".minimamba-1.tmp\tnone\t" + std::string(256, 'n') + "\n",
                               title + ".minimamba-1.tmp\tnone\t.minimamba-2.tmp\n",
                               title + ".minimamba-1.tmp\tnone\t.minimamba-commit\n",
                               title + ".minimamba-1.tmp\tnone\ta\n.minimamba-1.tmp\tnone\tb\n",
                               title + ".minimamba-1.tmp\tnone\ta\n.minimamba-2.tmp\tnone\ta\n",
                               many,
                               title + std::string(std::size_t{2} << 20, 'x') + "\n"};
  const Folder folder;
  const Model model = model_of_size(8);
  save(model, folder / "model");
  support::write_text(folder / "config.json", "outside");
  support::write_text(folder / "model" / ".minimamba-1.tmp", "{}");
  for (const std::string& list : lists) {
    support::write_text(folder / "model" / ".minimamba-commit", list);
    const auto before = contents(folder.path());
    for (const auto& action : {std::function<void()>([&] { load<Model>(folder / "model"); }),
                               std::function<void()>([&] { save(model, folder / "model"); })}) {
      try {
        action();
        ADD_FAILURE() << "accepted: " << list.substr(0, 100);
      } catch (const FormatError& error) {
        support::expect_words(error.what(), {"/model/.minimamba-commit", "list"});
      }
    }
    save_gguf(model, folder / "model" / "x.gguf");  // needs no list, and takes nothing away that one may need
    fs::remove(folder / "model" / "x.gguf");
    EXPECT_EQ(contents(folder.path()), before);
  }
}

TEST(AListOfFilesToRename, IsARegularFileOrNone) {
  for (const auto& make : {support::make_fifo, support::make_folder, support::make_loop, support::make_dangling}) {
    const Folder folder;
    const Model model = model_of_size(8), other = model_of_size(16);
    save(model, folder.path());
    make(folder / ".minimamba-commit");
    EXPECT_TRUE(identical(loaded_logits(folder.path()), logits_of(model)));
    const Model* expected = &other;
    try {
      save(other, folder.path());
    } catch (const FileError&) {  // what cannot be replaced
      expected = &model;
    }
    EXPECT_TRUE(identical(loaded_logits(folder.path()), logits_of(*expected)));
  }
}

/// What a save of these two leaves when it is killed before it renames anything.
void leave_list(const Folder& folder) {
  std::string list = title;
  for (const auto& [number, name] : {std::pair("1", "model.safetensors"), {"2", "config.json"}}) {
    const fs::path target = folder / name, temporary = folder / (".minimamba-" + std::string(number) + ".tmp");
    list += temporary.filename().string() + "\t" + minimamba::detail::identity_of(target) + "\t" + name + "\n";
  }
  support::write_text(folder / ".minimamba-commit", list);
}

TEST(AListOfFilesToRename, CountsOnlyForFilesThatAreNotRenamedYet) {
  const Folder folder;
  const Model old_model = model_of_size(8), new_model = model_of_size(16);
  save(old_model, folder.path());
  leave_list(folder);
  EXPECT_TRUE(identical(loaded_logits(folder.path()), logits_of(old_model))) << "all was renamed";
  fs::create_directory(folder / ".minimamba-1.tmp");
  fs::create_symlink("config.json", folder / ".minimamba-2.tmp");
  EXPECT_TRUE(identical(loaded_logits(folder.path()), logits_of(old_model))) << "these are none of ours";
  save(new_model, folder.path());
  EXPECT_TRUE(identical(loaded_logits(folder.path()), logits_of(new_model)));
  EXPECT_FALSE(fs::exists(folder / ".minimamba-commit"));
}

TEST(AListOfFilesToRename, IsIgnoredForFilesThatWereWrittenAfterIt) {
  const Folder folder;
  save(model_of_size(8), folder.path());
  support::write_text(folder / ".minimamba-1.tmp", "interrupted weights");
  support::write_text(folder / ".minimamba-2.tmp", "interrupted configuration");
  leave_list(folder);
  const auto text = [&](const char* name) {
    const ByteSource source = ByteSource::open(folder / name);
    std::string bytes(static_cast<std::size_t>(source.size()), '\0');
    source.read(0, std::as_writable_bytes(std::span(bytes)));
    return bytes;
  };
  EXPECT_EQ(text("config.json"), "interrupted configuration");
  AtomicFile newest(folder / "config.json");
  newest.write("newest");
  newest.commit();
  support::write_text(folder / "model.safetensors", "of another program");
  EXPECT_EQ(text("config.json"), "newest");
  EXPECT_EQ(text("model.safetensors"), "of another program");
  AtomicFile other(folder / "other");
  AtomicFile* const files[] = {&other};
  commit_together(files);
  EXPECT_EQ(support::read_text(folder / "config.json"), "newest");
  EXPECT_EQ(support::read_text(folder / "model.safetensors"), "of another program");
}

TEST(AListOfFilesToRename, OfAnotherUserIsIgnored) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can give a file to somebody else";
  const Folder folder;
  const Model model = model_of_size(8);
  save(model, folder.path());
  leave_list(folder);
  for (const char* const name : {".minimamba-commit", ".minimamba-1.tmp", ".minimamba-2.tmp"}) {
    if (!fs::exists(folder / name)) support::write_text(folder / name, "a stranger's");
    ASSERT_EQ(::chown((folder / name).c_str(), 65534, 65534), 0);
  }
  EXPECT_TRUE(identical(loaded_logits(folder.path()), logits_of(model)));
}

TEST(FilesThatAreCommittedTogether, HavePlainNamesInOneFolder) {
  const Folder folder;
  const auto expect_refused = [&](const std::vector<fs::path>& targets) {
    std::list<AtomicFile> files;
    std::vector<AtomicFile*> pointers;
    for (const fs::path& target : targets) pointers.push_back(&files.emplace_back(target));
    EXPECT_THROW(commit_together(pointers), ArgumentError) << targets.back();
  };
  fs::create_directory(folder / "sub");
  for (const char* const name : {"a\tb", "a\nb", "a:b", "a\\b", "a\x7F", ".minimamba-7.tmp", ".minimamba-commit"}) {
    expect_refused({folder / name});
  }
  expect_refused({folder / "a", folder / "a"});
  expect_refused({folder / "a", folder / "sub" / "b"});
  AtomicFile file(folder / "a");
  AtomicFile* const twice[] = {&file, &file};
  EXPECT_THROW(commit_together(twice), ArgumentError);
  file.commit();
  EXPECT_EQ(names_in(folder.path()), (std::set<std::string>{"a", "sub"}));
}

TEST(FilesThatAreCommittedTogether, AreNotOneFileUnderTwoLinks) {
  const Folder folder;
  fs::create_directory(folder / "store");
  fs::create_directory(folder / "model");
  fs::create_symlink("../store/one", folder / "model" / "config.json");
  fs::create_symlink("./../store/one", folder / "model" / "model.safetensors");
  EXPECT_THROW(save(model_of_size(8), folder / "model"), ArgumentError);
}

TEST(AListOfFilesToRename, IsWrittenThroughNoLink) {
  const Folder folder;
  support::write_text(folder / "precious", "precious");
  fs::create_directory(folder / "model");
  fs::create_symlink("../precious", folder / "model" / ".minimamba-commit");
  save(model_of_size(8), folder / "model");
  EXPECT_EQ(support::read_text(folder / "precious"), "precious");
  EXPECT_TRUE(identical(loaded_logits(folder / "model"), logits_of(model_of_size(8))));
}

}  // namespace killed_saves_test
