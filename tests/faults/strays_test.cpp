// Temporary files that a killed program has left: the next save takes them away, but none of a program that still
// writes.
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <set>
#include <string>

#include "support/files.hpp"

namespace strays_test {

using namespace minimamba;
using support::Folder;
using support::names_in;
namespace fs = std::filesystem;

support::Model model() { return support::trained_looking_model<support::Model>(support::tiny_config()); }

TEST(StraysOfASave, AreRemovedFromTheFolderThatALinkPointsTo) {
  const Folder folder;
  fs::create_directory(folder / "store");
  support::write_text(folder / "store" / ".minimamba-1.tmp", "a stray");
  fs::create_symlink("store/model.gguf", folder / "model.gguf");
  save_gguf(model(), folder / "model.gguf");
  EXPECT_EQ(names_in(folder / "store"), (std::set<std::string>{"model.gguf"}));
}

TEST(AFolderThatAnotherProgramHasLocked, DoesNotHoldUpASaveOfOneFile) {
  const Folder folder;
  support::write_text(folder / ".minimamba-1.tmp", "a stray");
  const int descriptor = ::open(folder.path().c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_EQ(::flock(descriptor, LOCK_EX), 0);
  save_gguf(model(), folder / "model.gguf");
  EXPECT_TRUE(fs::exists(folder / ".minimamba-1.tmp"));
  ::close(descriptor);
  save_gguf(model(), folder / "model.gguf");
  EXPECT_FALSE(fs::exists(folder / ".minimamba-1.tmp"));
}

TEST(ATemporaryFile, IsRemovedOnlyIfItsWriterIsDead) {
  const Folder folder;
  AtomicFile file(folder / "living");
  file.write("alive");
  save(model(), folder.path());
  save_gguf(model(), folder / "model.gguf");
  file.finish();
  AtomicFile::remove_strays(folder.path());
  file.commit();
  EXPECT_EQ(support::read_text(folder / "living"), "alive");
}

}  // namespace strays_test
