// GGUF files that are refused: one row each, with the words that the message must have; then every truncation, many
// flips of bits, and files that ask for time and memory.
#include "support/burden.hpp"
#include "support/files.hpp"

namespace refused_gguf_test {

using namespace minimamba;
using support::Folder;
using support::is;
using support::Model;
using support::read_text;
using support::write_text;
namespace fs = std::filesystem;

template <class T>
std::string bytes(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}
std::string text(const std::string& x) { return bytes(std::uint64_t{x.size()}) + x; }
std::string natural(const std::string& key, std::uint32_t value) {
  return text(key) + bytes(std::uint32_t{4}) + bytes(value);
}

using Change = std::function<void(std::string&)>;

Change at(std::size_t offset, const std::string& with) {
  return [=](std::string& file) { file.replace(offset, with.size(), with); };
}
Change replacing(const std::string& from, const std::string& to) {
  return [=](std::string& file) { support::replace(file, from, to); };
}
/// Another pair of metadata before the others.
Change pair(const std::string& encoded) {
  return [=](std::string& file) {
    file.insert(24, encoded);
    ++file[16];
  };
}
/// Overwrites what follows a tensor's name in the table: the number of dimensions, 8 bytes for each, the type, the
/// offset.
Change tensor(const std::string& name, std::size_t offset, const std::string& with) {
  return [=](std::string& file) {
    const std::size_t place = file.find(text(name));
    ASSERT_NE(place, file.npos);
    file.replace(place + 8 + name.size() + offset, with.size(), with);
  };
}
std::string list_of(std::uint32_t type, std::uint64_t count, const std::string& elements = "") {
  return text("a.list") + bytes(std::uint32_t{9}) + bytes(type) + bytes(count) + elements;
}
Change list(std::uint32_t type, std::uint64_t count) { return pair(list_of(type, count)); }

/// As much metadata as there may be, in texts of 16 characters and in names. The sizes are multiples of 32, so that
/// the data stays aligned.
void fill_metadata(std::string& file) {
  std::string texts = text("the.list") + bytes(9U) + bytes(8U) + bytes(std::uint64_t{324'000});
  for (int i = 0; i < 324'000; ++i) texts += text(std::string(16, 'x'));
  std::string tensors;
  for (int i = 0; i < 4'000; ++i) {
    tensors += text(std::to_string(1000 + i) + std::string(996, 'n')) + bytes(1U) + std::string(20, '\0');
  }
  file.insert(file.find(text("token_embd.weight")), tensors);
  std::uint64_t count = 0;
  std::memcpy(&count, file.data() + 8, sizeof(count));
  at(8, bytes(count + 4'000))(file);
  pair(texts)(file);
}

struct Row {
  std::string name;
  Change change;
  bool (*kind)(const Error&);
  std::vector<std::string> words;
  friend std::ostream& operator<<(std::ostream& out, const Row& row) { return out << row.name; }
};

class RefusedGguf : public testing::TestWithParam<Row> {};

TEST_P(RefusedGguf, IsNamedWithinASecondAndFiftyMegabytes) {
  const Folder folder;
  save_gguf(Model(support::tiny_config()), folder / "model.gguf");
  std::string file = read_text(folder / "model.gguf");
  GetParam().change(file);
  write_text(folder / "model.gguf", file);
  support::expect_light([&] {
    try {
      load<Model>(folder / "model.gguf");
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_TRUE(GetParam().kind(error)) << "an error of another kind: " << error.what();
      std::vector<std::string> words = GetParam().words;
      words.push_back("model.gguf");
      support::expect_words(error.what(), words);
    }
  });
}

const std::string d_state = natural("mamba.ssm.state_size", 3);
const std::string norm = "output_norm.weight";  // one dimension
constexpr std::size_t extent = 4, type = 12, offset = 16;

INSTANTIATE_TEST_SUITE_P(
    Header, RefusedGguf,
    testing::Values(
        Row{"VersionOne", at(4, bytes(1U)), is<FormatError>, {"version 2 or 3", "version 1"}},
        Row{"VersionFour", at(4, bytes(4U)), is<FormatError>, {"version 2 or 3", "version 4"}},
        Row{"BigEndian", at(4, bytes(0x03000000U)), is<FormatError>, {"big-endian"}},
        Row{"OnlyItsMagic", [](std::string& file) { file.resize(4); }, is<FormatError>, {"truncated"}},
        Row{"TensorsWithoutEnd", at(8, bytes(~0ULL)), is<FormatError>, {"20000 tensors", "18446744073709551615"}},
        Row{"KeysWithoutEnd", at(16, bytes(~0ULL)), is<FormatError>, {"4096 metadata keys", "18446744073709551615"}},
        Row{"KeyBeyondTheFile", at(24, bytes(1ULL << 30)), is<FormatError>, {"a string within the file", "1073741824"}},
        Row{"KeyOfTwoTo63", at(24, bytes(1ULL << 63)), is<FormatError>, {"a string within the file"}},
        Row{"KeyTwice", pair(natural("mamba.block_count", 1)), is<FormatError>, {"mamba.block_count", "occurs twice"}},
        Row{"ValueOfUnknownType",
            pair(text("a.b") + bytes(13U)),
            is<FormatError>,
            {"a.b", "known value type", "type 13"}},
        Row{"ListOfUnknownType", list(77, 1), is<FormatError>, {"a.list", "77"}},
        Row{"ListOfLists", list(9, 1), is<FormatError>, {"a.list", "strings or numbers"}},
        Row{"ListOfTwoTo60Numbers", list(4, 1ULL << 60), is<FormatError>, {"a.list", "list within the file"}},
        Row{"ListOfTwoTo60Texts", list(8, 1ULL << 60), is<FormatError>, {"a.list", "list within the file"}},
        // These two would have fitted in the memory that metadata may take, all of which such a short file then took.
        Row{"ListOfAMillionTexts", list(8, 1'000'000), is<FormatError>, {"a.list", "list within the file", "1000000"}},
        Row{"ListOfAMillionNumbers", list(0, 1'000'000), is<FormatError>, {"a.list", "list within the file"}},
        Row{"TextOfAGigabyte",
            pair(text("a.b") + bytes(8U) + bytes(1ULL << 30)),
            is<FormatError>,
            {"a.b", "1073741824"}},
        Row{"TextsOf100Megabytes",
            // Made only when the test runs: this table is built whenever the program starts.
            [](std::string& file) {
              std::string texts;
              for (int i = 0; i < 100; ++i) texts += text(std::string(1'000'000, 'x'));
              pair(list_of(8, 100, texts))(file);
            },
            is<FormatError>,
            {"a.list", "32 MiB"}},
        Row{"HalfAMillionTextsOfSixteenCharacters",
            [](std::string& file) {
              std::string texts;
              for (int i = 0; i < 500'000; ++i) texts += text(std::string(16, 'x'));
              pair(list_of(8, 500'000, texts))(file);
            },
            is<FormatError>,
            {"a.list", "32 MiB"}},
        Row{"AllLimitsAtOnce",
            [](std::string& file) {
              fill_metadata(file);
              support::replace(file, "output_norm", "output_name");
            },
            is<CheckpointError>,
            {"output_norm.weight", "found no tensor"}},
        Row{"AlignmentZero",
            replacing(natural("general.alignment", 32), natural("general.alignment", 0)),
            is<FormatError>,
            {"general.alignment", "multiple of 8", "found 0"}},
        Row{"AlignmentIsText",
            replacing(natural("general.alignment", 32), text("general.alignment") + bytes(8U) + text("32")),
            is<FormatError>,
            {"general.alignment", "a value of another type"}},
        Row{"AlignmentOdd",
            replacing(natural("general.alignment", 32), natural("general.alignment", 33)),
            is<FormatError>,
            {"general.alignment", "33"}},
        Row{"AlignmentHuge",
            replacing(natural("general.alignment", 32), natural("general.alignment", 1U << 31)),
            is<FormatError>,
            {"general.alignment", "2147483648"}}),
    [](const auto& row) { return row.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Tensor, RefusedGguf,
    testing::Values(
        Row{"DimensionsWithoutEnd", tensor(norm, 0, bytes(~0U)), is<FormatError>, {norm, "8 dimensions", "4294967295"}},
        Row{"ExtentOfTwoTo60", tensor(norm, extent, bytes(1ULL << 60)), is<FormatError>, {norm, "within the file"}},
        Row{"ExtentOfTwoTo63", tensor(norm, extent, bytes(1ULL << 63)), is<FormatError>, {norm, "9223372036854775808"}},
        Row{"OfUnknownType", tensor(norm, type, bytes(99U)), is<CheckpointError>, {norm, "floating-point", "type 99"}},
        Row{"OfARetiredType", tensor(norm, type, bytes(4U)), is<CheckpointError>, {norm, "type 4"}},
        Row{"OfWholeNumbers", tensor(norm, type, bytes(26U)), is<CheckpointError>, {norm, "floating-point", "I32"}},
        Row{"RowsNoWholeBlocks", tensor(norm, type, bytes(8U)), is<FormatError>, {norm, "Q8_0", "[8]"}},
        Row{"PastTheEnd",
            tensor(norm, offset, bytes(1ULL << 20)),
            is<FormatError>,
            {norm, "within the file", "1048576"}},
        Row{"FarPastTheEnd", tensor(norm, offset, bytes(~0ULL - 31)), is<FormatError>, {norm, "within the file"}},
        Row{"NotAligned", tensor(norm, offset, bytes(std::uint64_t{8})), is<FormatError>, {norm, "a multiple of 32"}},
        Row{"OverAnother", tensor(norm, offset, bytes(std::uint64_t{0})), is<FormatError>, {"overlap another tensor"}},
        Row{"Twice",
            replacing("blk.0.ssm_d", "blk.1.ssm_d"),
            is<CheckpointError>,
            {"blk.1.ssm_d", "another tensor of this name"}},
        Row{"Missing",
            replacing("blk.0.ssm_d", "blk.0.ssm_z"),
            is<CheckpointError>,
            {"blk.0.ssm_d", "[16]", "no tensor"}},
        Row{"Unknown", replacing("blk.1.ssm_d", "blk.2.ssm_d"), is<CheckpointError>, {"blk.1.ssm_d", "no tensor"}},
        Row{"Misshaped",
            tensor(norm, extent, bytes(std::uint64_t{4})),
            is<CheckpointError>,
            {norm, "[8]", "[4]", "mamba.embedding_length 8"}}),
    [](const auto& row) { return row.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Settings, RefusedGguf,
    testing::Values(Row{"OfAnotherArchitecture",
                        replacing(text("mamba"), text("llama")),
                        is<ConfigError>,
                        {"general.architecture", "mamba", "llama"}},
                    Row{"NormsOfDtThatAreANumber",
                        replacing(text("mamba.ssm.dt_b_c_rms") + bytes(7U) + '\0',
                                  text("mamba.ssm.dt_b_c_rms") + bytes(0U) + '\1'),
                        is<ConfigError>,
                        {"dt_b_c_rms", "a boolean", "an unsigned integer"}},
                    Row{"WithoutStates",
                        replacing("mamba.ssm.state_size", "mamba.ssm.state_sizz"),
                        is<ConfigError>,
                        {"mamba.ssm.state_size", "none"}},
                    Row{"ZeroStates",
                        replacing(d_state, natural("mamba.ssm.state_size", 0)),
                        is<ConfigError>,
                        {"mamba.ssm.state_size", "from 1", "found 0"}},
                    Row{"AbsurdStates",
                        replacing(d_state, natural("mamba.ssm.state_size", 1U << 30)),
                        is<ConfigError>,
                        {"mamba.ssm.state_size", "1073741824"}},
                    Row{"StatesContradictTheTensors",
                        replacing(d_state, natural("mamba.ssm.state_size", 4)),
                        is<CheckpointError>,
                        {"blk.0.ssm_a", "[16, 4]", "[16, 3]", "mamba.ssm.state_size 4"}},
                    Row{"AsManyLayersAsThereMayBe",
                        replacing(natural("mamba.block_count", 2), natural("mamba.block_count", 16384)),
                        is<CheckpointError>,
                        {"blk.2.attn_norm.weight", "mamba.block_count 16384"}},
                    Row{"InnerSizeNoMultiple",
                        replacing(natural("mamba.ssm.inner_size", 16), natural("mamba.ssm.inner_size", 17)),
                        is<CheckpointError>,
                        {"blk.0.ssm_a", "mamba.ssm.inner_size 17", "[16, 3]"}},
                    Row{"StatesAreText",
                        replacing(d_state, text("mamba.ssm.state_size") + bytes(8U) + text("3")),
                        is<ConfigError>,
                        {"mamba.ssm.state_size", "integer"}},
                    Row{"EpsilonIsZero",
                        replacing(bytes(6U) + bytes(1e-5F), bytes(6U) + bytes(0.0F)),
                        is<ConfigError>,
                        {"norm_epsilon", "positive"}},
                    Row{"MoreNamesOfTokensThanRows",
                        [](std::string& file) {
                          std::string names;
                          for (int i = 0; i < 17; ++i) names += text(std::to_string(i));
                          pair(text("tokenizer.ggml.tokens") + bytes(9U) + bytes(8U) + bytes(17ULL) + names)(file);
                          support::replace(file, "minimamba.vocab_size", "minimamba.other_size");
                        },
                        is<ConfigError>,
                        {"tokenizer.ggml.tokens", "at most 16 tokens", "17"}},
                    Row{"MoreTokensThanRows",
                        replacing(natural("minimamba.vocab_size", 11), natural("minimamba.vocab_size", 17)),
                        is<ConfigError>,
                        {"minimamba.vocab_size", "1 to 16", "17"}}),
    [](const auto& row) { return row.param.name; });

TEST(RefusedGguf, WhoseAIsAboveZero) {
  const Folder folder;
  Model model(support::tiny_config());
  save_gguf(model, folder / "model.gguf");
  std::string file = read_text(folder / "model.gguf");
  support::replace(file, bytes(-1.0F) + bytes(-2.0F) + bytes(-3.0F), bytes(-1.0F) + bytes(2.0F) + bytes(-3.0F));
  write_text(folder / "model.gguf", file);
  try {
    model = load<Model>(folder / "model.gguf");
    ADD_FAILURE() << "accepted";
  } catch (const CheckpointError& error) {
    support::expect_words(error.what(), {"blk.0.ssm_a", "at most zero", "found 2"});
  }
}

bool loads(const fs::path& path) {
  try {
    const Model model = load<Model>(path);
    auto cache = model.make_cache();
    model.forward(std::vector<std::int32_t>{0, 0}, cache);
    return true;
  } catch (const Error&) {
    return false;
  }
}

const MambaConfig smallest{.d_model = 2, .n_layer = 1, .vocab_size = 3, .d_state = 1, .d_conv = 2, .expand = 1};

TEST(HostileGguf, EveryTruncationIsRefused) {
  const Folder folder;
  const fs::path path = folder / "model.gguf";
  save_gguf(Model(smallest), path);
  const std::uintmax_t whole = fs::file_size(path);
  ASSERT_LE(whole, 16384U);
  ASSERT_TRUE(loads(path));
  for (std::uintmax_t size = whole; size-- > 0;) {
    fs::resize_file(path, size);
    EXPECT_FALSE(loads(path)) << size << " bytes";
  }
}

TEST(HostileGguf, EveryFlipIsRefusedOrHarmless) {
  const Folder folder;
  const fs::path path = folder / "model.gguf";
  save_gguf(Model(smallest), path);
  const std::string whole = read_text(path);
  Random random(1);
  int loaded = 0;
  for (int round = 0; round < 10'000; ++round) {
    std::string changed = whole;
    for (int flips = round % 3; flips >= 0; --flips) {
      const std::uint64_t bits = random.bits();
      char& byte = changed[(bits >> 8) % changed.size()];
      byte = static_cast<char>(byte ^ (1 << (bits % 8)));
    }
    std::fstream(path, std::ios::binary | std::ios::in | std::ios::out) << changed;
    loaded += loads(path) ? 1 : 0;
  }
  EXPECT_GT(loaded, 500);
  EXPECT_LT(loaded, 9'500);
}

TEST(RefusedSaves, OfGgufLeaveTheOldFile) {
  const Folder folder;
  const Model model(support::tiny_config());
  save_gguf(model, folder / "model.gguf");
  const auto before = support::contents(folder.path());
  {
    const support::FullDisk full(4096);
    EXPECT_THROW(save_gguf(model, folder / "model.gguf"), FileError);
  }
  EXPECT_THROW(save_gguf(model, folder / "model.gguf", {.progress = [](double) { return false; }}), CancelledError);
  EXPECT_THROW(save_gguf(model, folder / "model.gguf" / "below"), FileError);
  EXPECT_THROW(save_gguf(model, folder / "new/sub/model.gguf", {.progress = [](double) { return false; }}),
               CancelledError);
  EXPECT_THROW(save_gguf(model, folder.path()), FileError);
  EXPECT_EQ(support::contents(folder.path()), before);
}

}  // namespace refused_gguf_test
