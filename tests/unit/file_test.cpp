// ByteSource and AtomicFile: what they read and write, and above all what they refuse and leave alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/io/atomic_file.hpp"
#include "minimamba/io/commit_together.hpp"
#include "minimamba/io/file.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace file_test {

namespace fs = std::filesystem;
using minimamba::AtomicFile;
using minimamba::ByteSource;

std::span<const std::byte> bytes_of_text(const std::string& text) { return std::as_bytes(std::span(text)); }

/// Each test gets an empty folder, removed with all in it.
class FileTest : public testing::Test {
 protected:
  FileTest() {
    const testing::TestInfo& info = *testing::UnitTest::GetInstance()->current_test_info();
    folder = fs::path(testing::TempDir()) / (std::string("minimamba_") + info.test_suite_name() + "_" + info.name());
    fs::remove_all(folder);
    fs::create_directories(folder);
  }
  ~FileTest() override {
    std::error_code ignored;
    fs::remove_all(folder, ignored);
  }

  static void put(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }
  static std::string get(const fs::path& path) {
    std::ifstream stream(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }
  std::size_t entries() const {
    return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
  }

  /// Runs f, which must throw an E that names the path.
  template <class E, class F>
  static void refuses(const fs::path& path, F&& f) {
    try {
      f();
      ADD_FAILURE() << path << " was not refused";
    } catch (const E& error) {
      EXPECT_NE(std::string(error.what()).find(path.string()), std::string::npos) << error.what();
    }
  }

  fs::path folder;
};

using ByteSourceTest = FileTest;
using AtomicFileTest = FileTest;

static_assert(std::is_constructible_v<ByteSource, const std::vector<std::byte>&, std::string>);
static_assert(!std::is_constructible_v<ByteSource, std::vector<std::byte>, std::string>);  // it would outlive its bytes

TEST_F(ByteSourceTest, ReadsAnyRangeOfAFileAndOfMemory) {
  const std::string text = "0123456789";
  put(folder / "file", text);
  for (const ByteSource& source : {ByteSource::open(folder / "file"), ByteSource(bytes_of_text(text), "memory")}) {
    EXPECT_EQ(source.size(), 10U);
    std::string read(4, ' ');
    source.read(3, std::as_writable_bytes(std::span(read)));
    EXPECT_EQ(read, "3456");
    source.read(10, {});
    EXPECT_EQ(source.read_value<char>(9), '9');
    EXPECT_EQ(source.read_value<std::uint16_t>(1), 0x3231);
  }
}

TEST_F(ByteSourceTest, RefusesToReadPastTheEnd) {
  put(folder / "file", "0123456789");
  const ByteSource source = ByteSource::open(folder / "file");
  std::byte four[4];
  for (const std::uint64_t offset : {7ULL, 10ULL, 11ULL, ~0ULL, ~0ULL - 3}) {
    refuses<minimamba::FormatError>(folder / "file", [&] { source.read(offset, four); });
  }
  refuses<minimamba::FormatError>("empty", [] { ByteSource({}, "empty").read_value<char>(0); });
  for (const auto& [begin, end] : {std::pair(0U, 11U), std::pair(11U, 11U), std::pair(5U, 4U)}) {
    refuses<minimamba::FormatError>(
        folder / "file", [&, first = begin, last = end] { minimamba::detail::SequentialBytes(source, first, last); });
  }
}

TEST_F(ByteSourceTest, NoticesThatAFileHasShrunk) {
  put(folder / "file", "0123456789");
  const ByteSource source = ByteSource::open(folder / "file");
  fs::resize_file(folder / "file", 5);
  std::byte four[4];
  source.read(0, four);
  refuses<minimamba::Error>(folder / "file", [&] { source.read(3, four); });
}

TEST_F(ByteSourceTest, SharesTheFileAmongCopiesAndOutlivesItsName) {
  put(folder / "file", "abc");
  ByteSource copy = ByteSource::open(folder / "file");
  { const ByteSource first = copy; }
  fs::remove(folder / "file");
  EXPECT_EQ(copy.read_value<char>(2), 'c');
}

TEST_F(ByteSourceTest, RefusesWhatIsNoFile) {
  put(folder / "file", "");
  for (const fs::path& path : {folder / "none", folder, folder / "file" / "below", fs::path()}) {
    refuses<minimamba::FileError>(path, [&] { ByteSource::open(path); });
  }
}

#if defined(__unix__) || defined(__APPLE__)
TEST_F(ByteSourceTest, RefusesAFifoWithoutWaitingForItsWriter) {
  ASSERT_EQ(::mkfifo((folder / "fifo").c_str(), 0600), 0);
  refuses<minimamba::FileError>(folder / "fifo", [&] { ByteSource::open(folder / "fifo"); });
  refuses<minimamba::FileError>(folder / "fifo", [&] { AtomicFile file(folder / "fifo"); });
  EXPECT_EQ(entries(), 1U);
}
#endif

TEST_F(AtomicFileTest, AppearsOnlyAtCommit) {
  put(folder / "file", "old");
  AtomicFile file(folder / "file");
  for (int i = 0; i < 100'000; ++i) file.write("0123456");
  file.finish();
  EXPECT_EQ(get(folder / "file"), "old");
  file.commit();
  EXPECT_EQ(fs::file_size(folder / "file"), 700'000U);
  EXPECT_EQ(get(folder / "file").substr(699'990), "4560123456");
  EXPECT_EQ(entries(), 1U);
}

TEST_F(AtomicFileTest, LeavesNothingWithoutCommit) {
  put(folder / "file", "old");
  {
    AtomicFile file(folder / "file");
    file.write("new");
    AtomicFile moved = std::move(file);
    moved.finish();
    EXPECT_EQ(entries(), 2U);
  }
  EXPECT_EQ(entries(), 1U);
  EXPECT_EQ(get(folder / "file"), "old");
}

TEST_F(AtomicFileTest, WritesAtAnyOffset) {
  AtomicFile file(folder / "file");
  file.seek(4);
  file.write("efgh");
  file.seek(0);
  file.write("ab");
  file.commit();
  EXPECT_EQ(get(folder / "file"), std::string("ab\0\0efgh", 8));
}

TEST_F(AtomicFileTest, ReplacesTheFileThatALinkLeadsTo) {
  fs::create_directory(folder / "sub");
  put(folder / "sub" / "file", "old");
  fs::create_symlink("sub/file", folder / "link");
  fs::create_symlink("link", folder / "first");
  fs::create_symlink("sub/none", folder / "broken");
  for (const char* const name : {"first", "broken"}) {
    AtomicFile file(folder / name);
    file.write("new");
    EXPECT_EQ(get(folder / "sub" / "file"), std::string(name) == "first" ? "old" : "new");
    file.commit();
    EXPECT_EQ(get(folder / name), "new");
    EXPECT_TRUE(fs::is_symlink(folder / name));
  }
  EXPECT_EQ(get(folder / "sub" / "file"), "new");
  EXPECT_EQ(get(folder / "sub" / "none"), "new");
  EXPECT_EQ(entries(), 4U);
  fs::create_symlink("loop", folder / "loop");
  refuses<minimamba::FileError>(folder / "loop", [&] { AtomicFile file(folder / "loop"); });
}

TEST_F(AtomicFileTest, CommitsTogetherWhatLinksLeadTo) {
  fs::create_directory(folder / "blobs");
  for (const char* const name : {"weights", "tokens"}) {
    put(folder / "blobs" / name, "old");
    fs::create_symlink("blobs/" + std::string(name), folder / name);
  }
  AtomicFile weights(folder / "weights"), tokens(folder / "tokens"), config(folder / "config");
  for (AtomicFile* const file : {&weights, &tokens, &config}) file->write("new");
  const std::array files{&weights, &tokens, &config};
  minimamba::commit_together(files);
  for (const char* const name : {"weights", "tokens", "config"}) EXPECT_EQ(get(folder / name), "new");
  EXPECT_TRUE(fs::is_symlink(folder / "weights"));
  EXPECT_EQ(entries(), 4U);  // blobs, two links, config
  // A save that was cut short behind a link is read through it.
  put(folder / "blobs" / ".minimamba-1.tmp", "newer");
  put(folder / "blobs" / ".minimamba-commit", "minimamba commit 1\n.minimamba-1.tmp\t" +
                                                  minimamba::detail::identity_of(folder / "blobs" / "weights") +
                                                  "\tweights\n");
  const auto source = minimamba::ByteSource::open(folder / "weights");
  std::string text(source.size(), '\0');
  source.read(0, std::as_writable_bytes(std::span(text)));
  EXPECT_EQ(text, "newer");
}

TEST_F(AtomicFileTest, CommitsAtMost256FilesTogether) {
  AtomicFile file(folder / "file");
  const std::vector<AtomicFile*> files(257, &file);  // one, as macOS lets a process open 256
  try {
    minimamba::commit_together(files);
    ADD_FAILURE() << "accepted";
  } catch (const minimamba::ArgumentError& error) {
    EXPECT_STREQ(error.what(), "files: expected at most 256 files to save together, found 257");
  }
  EXPECT_FALSE(fs::exists(folder / "file"));
}

TEST_F(AtomicFileTest, KeepsThePermissionsOfTheOldFile) {
  put(folder / "file", "old");
  fs::permissions(folder / "file", fs::perms::owner_read | fs::perms::owner_write);
  AtomicFile file(folder / "file");
  file.commit();
  EXPECT_EQ(fs::status(folder / "file").permissions(), fs::perms::owner_read | fs::perms::owner_write);
}

TEST_F(AtomicFileTest, AcceptsANameOfTheMaximumLength) {
  const fs::path path = folder / std::string(255, 'n');
  AtomicFile file(path);
  file.commit();
  EXPECT_TRUE(fs::exists(path));
}

TEST_F(AtomicFileTest, RefusesATargetThatIsNotAFileOrHasNoFolder) {
  put(folder / "file", "old");
  fs::create_directory(folder / "sub");
  fs::create_symlink("sub", folder / "link");
  const fs::path paths[] = {folder,     folder / "sub",        folder / "sub" / "",  folder / "link",
                            fs::path(), folder / "none" / "x", folder / "file" / "x"};
  for (const fs::path& path : paths) {
    refuses<minimamba::FileError>(path, [&] { AtomicFile file(path); });
  }
  EXPECT_EQ(entries(), 3U);
  EXPECT_EQ(get(folder / "file"), "old");
}

TEST_F(AtomicFileTest, RefusesToBeWrittenAfterItsEnd) {
  AtomicFile file(folder / "file");
  file.commit();
  refuses<minimamba::FileError>(folder / "file", [&] { file.write("more"); });
  refuses<minimamba::FileError>(folder / "file", [&] { file.commit(); });
}

TEST_F(AtomicFileTest, CommitsTwoFilesAfterAllThatCanFail) {
  put(folder / "weights", "old");
  put(folder / "config", "old");
  {
    AtomicFile weights(folder / "weights"), config(folder / "config");
    weights.write("new");
    config.write("new");
    weights.finish();
    config.finish();
    EXPECT_EQ(get(folder / "weights") + get(folder / "config"), "oldold");
    weights.commit();
    config.commit();
  }
  EXPECT_EQ(get(folder / "weights") + get(folder / "config"), "newnew");
  EXPECT_EQ(entries(), 2U);
}

#if defined(__unix__) || defined(__APPLE__)
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

TEST_F(AtomicFileTest, LeavesTheOldFileWhenTheDiskIsFull) {
  put(folder / "file", "old");
  for (const std::size_t size : {std::size_t{5000}, std::size_t{5'000'000}}) {
    refuses<minimamba::FileError>(folder / "file", [&] {
      AtomicFile file(folder / "file");
      const FullDisk full(4096);
      file.write(std::string(size, 'x'));
      file.finish();
    });
    EXPECT_EQ(entries(), 1U);
    EXPECT_EQ(get(folder / "file"), "old");
  }
}

TEST_F(AtomicFileTest, StaysRefusedAfterAnError) {
  AtomicFile file(folder / "file");
  const FullDisk full(4096);
  refuses<minimamba::FileError>(folder / "file", [&] { file.write(std::string(5'000'000, 'x')); });
  refuses<minimamba::FileError>(folder / "file", [&] { file.write("x"); });
  refuses<minimamba::FileError>(folder / "file", [&] { file.commit(); });
  EXPECT_EQ(entries(), 0U);
}
#endif

TEST_F(FileTest, RemovesWhatKilledProgramsHaveLeftAndNothingElse) {
  for (const char* name : {".minimamba-1.tmp", ".minimamba-12345678.tmp"}) put(folder / name, "left");
  const std::vector<std::string> others{".minimamba-.tmp",  ".minimamba-123456789.tmp", ".minimamba-1a.tmp",
                                        "minimamba-1.tmp",  ".minimamba-1.tmp2",        "x.minimamba-1.tmp",
                                        "model.safetensors"};
  for (const std::string& name : others) put(folder / name, "other");
  fs::create_directory(folder / ".minimamba-2.tmp");
  AtomicFile::remove_strays(folder);
  EXPECT_EQ(entries(), others.size() + 1);
  for (const std::string& name : others) EXPECT_EQ(get(folder / name), "other") << name;
  for (const bool finished : {false, true}) {
    AtomicFile file(folder / "new");
    if (finished) file.finish();
    AtomicFile::remove_strays(folder);  // its writer lives
    EXPECT_EQ(entries(), others.size() + 2);
    fs::path temporary;
    for (const auto& entry : fs::directory_iterator(folder)) {
      const bool other = std::find(others.begin(), others.end(), entry.path().filename().string()) != others.end();
      if (!other && entry.is_regular_file()) temporary = entry.path();
    }
    fs::copy_file(temporary, folder / ".minimamba-7.tmp");  // of the same kind of name, and nobody writes it
    AtomicFile::remove_strays(folder);
    EXPECT_EQ(entries(), others.size() + 2);
    file.commit();
    EXPECT_EQ(get(folder / "new"), "");
    fs::remove(folder / "new");
  }
  AtomicFile::remove_strays(folder / "none");
}

}  // namespace file_test
