// PyTorch files that are refused: one row each, with the words that the message must have; then every truncation and
// many flips of bits.
#include "minimamba/io/torch_bin.hpp"
#include "support/burden.hpp"
#include "support/files.hpp"
#include "support/torch_files.hpp"

namespace refused_torch_test {

using namespace minimamba;
using namespace support::torch_files;
using support::Folder;
using support::Model;
using support::read_text;
using support::write_text;
namespace fs = std::filesystem;

/// A name that takes as much room as 20,000 of them may.
std::string long_name(int number) { return std::to_string(number) + std::string(180, 'n'); }

/// Files that come near every limit at once: as many entries, tensors, values, parts, lists, memories and characters as
/// there may be. The last tensor has the name of another.
std::string all_at_once() {
  std::string pickle = "\x80\x04}(";
  for (int i = 0; i < 20'000; ++i) pickle += text(long_name(std::min(i, 19'998))) + good;
  pickle += "u}(" + repeated(36'000, "]Na") + repeated(100'000, "N") + "ub" + repeated(590'000, "\x94") + ".";
  std::vector<Entry> entries{{"a/data.pkl", pickle}, {"a/data/0", numbers}};
  for (int i = 0; i < 32'700; ++i) entries.push_back({std::to_string(100'000 + i) + std::string(74, 'e'), ""});
  return zip(entries);
}
std::string one_name_for_all() {
  std::string pairs;
  for (int i = 0; i < 19'000; ++i) pairs += std::string("h\1h\2", 4);
  return pickled("\x80\x02}(" + text(std::string(1'000'000, 'n')) + "q\1" + good + "q\2" + pairs + "u.");
}

struct Row {
  std::string name;
  std::function<std::string()> file;
  std::vector<std::string> words;
  friend std::ostream& operator<<(std::ostream& out, const Row& row) { return out << row.name; }
};

class RefusedTorchBin : public testing::TestWithParam<Row> {};

TEST_P(RefusedTorchBin, IsNamedWithinASecondAndFiftyMegabytes) {
  const Folder folder;
  write_text(folder / "model.bin", GetParam().file());
  const auto source = ByteSource::open(folder / "model.bin");
  support::expect_light([&] {
    TensorSet set;
    try {
      read_torch_bin(source, set);
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      std::vector<std::string> words = GetParam().words;
      words.push_back("model.bin");
      support::expect_words(error.what(), words);
    }
    EXPECT_TRUE(set.tensors().empty());
  });
}

TEST(RefusedTorchBin, IsNotTheFileFromWhichTheyAreMade) {
  for (const std::string& file :
       {holding(good), zip({{"x/y", ""}, {"a/data.pkl", dict(good)}, {"a/data/0", numbers}})}) {
    TensorSet set;
    read_torch_bin(ByteSource(std::as_bytes(std::span(file)), "good"), set);
    ASSERT_NE(set.find("x"), nullptr);
    std::vector<float> values(4);
    set.read(*set.find("x"), 0, std::span(values));
    EXPECT_EQ(std::memcmp(values.data(), numbers.data(), 16), 0);
  }
}

TEST(TorchBin, MayHoldParametersAndWhatIsNoTensor) {
  const std::string parameter = global("torch._utils", "_rebuild_parameter") +
                                tuple(good + "\x88" + global("collections", "OrderedDict") + ")R") + "R";
  const std::string file =
      holding(parameter + text("epoch") + integer(3) + text("none") + "N" + text("settings") + "}(" + text("a") +
              integer(1) + "u" + text("whole") + tensor(storage("IntStorage"), integer(0), integer(4), integer(1)));
  TensorSet set;
  read_torch_bin(ByteSource(std::as_bytes(std::span(file)), "parameters"), set);
  ASSERT_NE(set.find("x"), nullptr);
  std::vector<float> values(4);
  set.read(*set.find("x"), 0, std::span(values));
  EXPECT_EQ(std::memcmp(values.data(), numbers.data(), 16), 0);
  EXPECT_EQ(set.tensors().size(), 2U);
  ASSERT_EQ(set.notes().size(), 1U);
  support::expect_words(set.notes().front(), {"3 values", "not tensors", "epoch, none, settings"});
}

TEST(TorchBin, MayHoldTypesThatAreNotKnown) {
  const std::string typed =
      global("torch._utils", "_rebuild_tensor_v3") +
      tuple(tuple(text("storage") + global("torch.storage", "UntypedStorage") + text("0") + text("cpu") + integer(16)) +
            "Q" + integer(0) + tuple(integer(16)) + tuple(integer(1)) + "\x89" + global("collections", "OrderedDict") +
            ")R" + global("torch", "float8_e4m3fn")) +
      "R";
  const std::string file =
      holding(good + text("eight") + typed + text("complex") +
              tensor(storage("ComplexFloatStorage"), integer(0), integer(2), integer(1)) + text("quantised") +
              tensor(storage("Float8_e4m3fnStorage", "0", 16), integer(0), integer(16), integer(1)));
  TensorSet set;
  read_torch_bin(ByteSource(std::as_bytes(std::span(file)), "others"), set);
  ASSERT_EQ(set.tensors().size(), 4U);
  EXPECT_EQ(set.find("x")->dtype, DType::F32);
  EXPECT_EQ(type_of(*set.find("eight")), "float8_e4m3fn");
  EXPECT_EQ(type_of(*set.find("complex")), "ComplexFloatStorage");
  std::vector<float> values(2);
  for (const char* const name : {"eight", "complex", "quantised"}) {
    EXPECT_EQ(set.find(name)->dtype, DType::OTHER);
    EXPECT_THROW(set.read(*set.find(name), 0, std::span(values)), CheckpointError);
  }
}

std::function<std::string()> changed(std::size_t from_end, const std::string& with) {
  return [=] {
    std::string file = holding(good);
    return file.replace(file.size() - from_end, with.size(), with);
  };
}

INSTANTIATE_TEST_SUITE_P(
    Zip, RefusedTorchBin,
    testing::Values(
        Row{"Empty", [] { return std::string(); }, {"a directory at its end", "none"}},
        Row{"WithoutAnEnd", [] { return holding(good).substr(0, 300); }, {"a directory at its end", "truncated"}},
        Row{"Compressed",
            [] {
              return zip({{"a/data.pkl", dict(good), 8}, {"a/data/0", numbers}});
            },
            {"a/data.pkl", "uncompressed", "compression method 8"}},
        Row{"Encrypted",
            [] {
              return zip({{"a/data.pkl", dict(good), 0, 1}, {"a/data/0", numbers}});
            },
            {"a/data.pkl", "encrypted"}},
        Row{"EntryTwice",
            [] {
              return zip({{"a/data.pkl", dict(good)}, {"a/data/0", numbers}, {"a/data/0", numbers}});
            },
            {"a/data/0", "the entry occurs twice"}},
        Row{"TwoPickles",
            [] {
              return zip({{"a/data.pkl", dict(good)}, {"b/data.pkl", dict(good)}});
            },
            {"one data.pkl", "b/data.pkl"}},
        Row{"NoPickle",
            [] {
              return zip({{"a/data/0", numbers}});
            },
            {"data.pkl", "none"}},
        Row{"BigEndian",
            [] {
              return zip({{"a/data.pkl", dict(good)}, {"a/byteorder", "big"}, {"a/data/0", numbers}});
            },
            {"little", "big"}},
        Row{"EntriesWithoutEnd",
            [] {
              return zip(std::vector<Entry>(33'000, {"a", ""}));
            },
            {"32768 entries", "33000"}},
        Row{"DirectoryBeyondTheFile", changed(6, bytes(~0U)), {"directory within the file"}},
        Row{"DirectoryOfAGigabyte", changed(10, bytes(1U << 30)), {"directory within the file"}},
        Row{"DirectoryEndsInsideAName", changed(48, bytes(std::uint16_t{500})), {"ends inside an entry"}},
        Row{"HeaderElsewhere", changed(34, bytes(5U)), {"a/data/0", "a header before the directory", "none at byte 5"}},
        Row{"HeaderBeyondTheDirectory", changed(34, bytes(~1U)), {"a/data/0", "a header", "at byte 4294967294"}},
        Row{"TwoEntriesAtOnePlace", changed(34, bytes(0U)), {"the entry overlaps another"}},
        Row{"LocatorOfNoEnd",
            [] {
              std::string file = holding(good);
              return file.insert(file.size() - 22, "PK\6\7" + bytes(0U) + bytes(~0ULL) + bytes(1U));
            },
            {"a 64-bit end record before byte", "none at byte 18446744073709551615"}},
        Row{"MoreEntriesThanThereAre", changed(12, bytes(std::uint16_t{9})), {"directory of 9 entries", "only 2"}},
        Row{"EntryBeyondTheFile",
            [] {
              std::string file = holding(good);
              support::replace(file, bytes(16U) + bytes(16U), bytes(1U << 30) + bytes(1U << 30));
              return file;
            },
            {"a/data/0", "before the directory", "1073741824"}},
        Row{"SizesDiffer",
            [] {
              std::string file = holding(good);
              support::replace(file, bytes(16U) + bytes(16U), bytes(8U) + bytes(16U));
              return file;
            },
            {"a/data/0", "equal sizes", "8 and 16"}},
        Row{"WideSizesMissing",
            [] {
              std::string file = holding(good);
              support::replace(file, bytes(16U) + bytes(16U), bytes(~0U) + bytes(~0U));
              return file;
            },
            {"a/data/0", "64-bit sizes"}}),
    [](const auto& row) { return row.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Pickle, RefusedTorchBin,
    testing::Values(
        Row{"CallsTheSystem",
            [] { return holding(global("posix", "system") + tuple(text("true")) + "R"); },
            {"\"posix.system\""}},
        Row{"CallsTheSystemOfProtocolFour",
            [] { return holding(text("posix") + text("system") + "\x93" + tuple(text("true")) + "R"); },
            {"\"posix.system\""}},
        Row{"Evaluates",
            [] { return holding(global("builtins", "eval") + tuple(text("1")) + "R"); },
            {"builtins.eval"}},
        Row{"HasAParameterOfNoTensor",
            [] { return holding(global("torch._utils", "_rebuild_parameter") + tuple(integer(1) + "NN") + "R"); },
            {"a call that makes"}},
        Row{"HasAParameterWithoutItsSettings",
            [] { return holding(global("torch._utils", "_rebuild_parameter") + tuple(good) + "R"); },
            {"a call that makes"}},
        Row{"IsAWholeModel",
            [] { return pickled("\x80\x02" + global("models", "Mamba") + ")\x81."); },
            {"models.Mamba"}},
        Row{"CallsAType", [] { return holding(global("torch", "float8_e4m3fn") + ")R"); }, {"a call that makes"}},
        Row{"NamesAFunctionOfTorch",
            [] { return holding(global("torch", "load") + tuple(text("x")) + "R"); },
            {"\"torch.load\""}},
        Row{"NamesWhatIsNoTypeOfTorch", [] { return holding(global("torch", "int.Storage")); }, {"torch.int.Storage"}},
        Row{"OfAnUnknownTypeWithoutBytes",
            [] { return holding(tensor(storage("Float8_e4m3fnStorage", "9"), integer(0), integer(4), integer(1))); },
            {"a/data/9 is missing"}},
        Row{"OfAnUnknownTypeAndAnAbsurdShape",
            [] {
              const std::string extents = repeated(4, integer(0x7FFFFFFF));
              return holding(tensor(storage("ComplexFloatStorage"), integer(0), extents, extents));
            },
            {"a shape of a possible size"}},
        Row{"CallsAStorage", [] { return holding(global("torch", "FloatStorage") + ")R"); }, {"a call that makes"}},
        Row{"OfAnUnknownInstruction", [] { return holding("i"); }, {"instruction", "105"}},
        Row{"OfProtocolNine", [] { return pickled("\x80\x09}."); }, {"protocol", "9"}},
        Row{"WithoutEnd", [] { return pickled("\x80\x02}"); }, {"truncated"}},
        Row{"WithMoreBehind", [] { return pickled(dict(good) + "N"); }, {"end of the pickle", "1 more"}},
        Row{"OfNothing", [] { return pickled("\x80\x02N."); }, {"a dict of tensors", "None"}},
        Row{"OfNumbers", [] { return holding(integer(7)); }, {"x", "a tensor", "an int"}},
        Row{"OfADictOfTensors",
            [] { return holding("}(" + text("y") + good + "u"); },
            {"x", "a tensor", "a dict", "[\"x\"], \"pytorch_model.bin\")"}},
        Row{"OfAStateDictAmongOtherThings",
            [] { return holding(integer(7) + text("model") + "}(" + text("y") + good + "u"); },
            {"x", "a tensor", "[\"model\"], \"pytorch_model.bin\")", "an int"}},
        Row{"WithNumbersForNames",
            [] { return pickled("\x80\x02}(" + integer(1) + good + "u."); },
            {"names", "an int"}},
        Row{"TakesFromAnEmptyStack", [] { return pickled("\x80\x02R."); }, {"too few"}},
        Row{"TakesFromBelowAMark", [] { return pickled("\x80\x02NN(\x86."); }, {"too few"}},
        Row{"EndsAListWithoutAMark", [] { return pickled("\x80\x02]e."); }, {"a mark"}},
        Row{"PutsIntoANumber", [] { return pickled("\x80\x02K\1(" + text("x") + good + "u."); }, {"dict", "an int"}},
        Row{"RecallsNothing", [] { return pickled("\x80\x02h\7."); }, {"memo entry 7", "none"}},
        Row{"MemorisesFarAway", [] { return pickled("\x80\x02Nr" + bytes(~0U) + "."); }, {"memo entries"}},
        Row{"MemorisesForever",
            [] { return pickled("\x80\x04N" + repeated(8'000'000, "\x94") + "."); },
            {"memo entries"}},
        Row{"RecallsForever",
            [] {
              return pickled("\x80\x02Nq" + std::string(1, '\0') + repeated(4'000'000, std::string("h\0", 2)) + ".");
            },
            {"values"}},
        Row{"NestsForever", [] { return pickled("\x80\x02)" + repeated(8'000'000, "\x85") + "."); }, {"parts"}},
        Row{"MarksForever", [] { return pickled("\x80\x02" + repeated(8'000'000, "(") + "."); }, {"1000 marks"}},
        Row{"MakesListsForever", [] { return pickled("\x80\x02" + repeated(8'000'000, "]") + "."); }, {"lists"}},
        Row{"TextOfAGigabyte", [] { return pickled("\x80\x02X" + bytes(1U << 30)); }, {"texts within", "1073741824"}},
        Row{"TextOfTwoTo60", [] { return pickled("\x80\x04\x8d" + bytes(1ULL << 60)); }, {"texts within"}},
        Row{"TextsOf7Megabytes",
            [] { return pickled("\x80\x02" + repeated(7, text(std::string(1 << 20, 'x')))); },
            {"texts within"}},
        Row{"RefersToItsListsForever",
            [] {
              const std::string list = "](" + repeated(500'000, std::string("h\0", 2)) + "e";
              return pickled("\x80\x02Nq" + std::string(1, '\0') + repeated(7, list) + ".");
            },
            {"parts"}},
        Row{"OneNameForAllTensors", one_name_for_all, {"names of at most 4194304 bytes"}},
        Row{"OfMoreThan20000Tensors",
            [] {
              return pickled("\x80\x02}(" + text("x") + "q\1" + good + "q\2" +
                             repeated(20'000, std::string("h\1h\2", 4)) + "u.");
            },
            {"at most 20000 tensors"}},
        Row{"AllLimitsAtOnce", all_at_once, {"19998nnn", "another tensor of this name"}},
        Row{"OfFortyMegabytes",
            [] { return pickled("\x80\x02" + repeated(40'000'000, "N")); },
            {"data.pkl of at most"}}),
    [](const auto& row) { return row.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Tensor, RefusedTorchBin,
    testing::Values(
        Row{"WithoutBytes",
            [] { return holding(tensor(storage("FloatStorage", "1"), integer(0), integer(4), integer(1))); },
            {"x", "a/data/1 is missing"}},
        Row{"BytesBeyondItsFolder",
            [] { return holding(tensor(storage("FloatStorage", "../0"), integer(0), integer(4), integer(1))); },
            {"x", "a/data/../0 is missing"}},
        Row{"StorageOfANumber",
            [] { return holding(tensor(integer(1) + "Q", integer(0), integer(4), integer(1))); },
            {"a tuple that describes a storage", "an int"}},
        Row{"StorageWithoutItsSize",
            [] {
              const std::string parts = text("storage") + global("torch", "FloatStorage") + text("0") + text("cpu");
              return holding(tensor(tuple(parts) + "Q", integer(0), integer(4), integer(1)));
            },
            {"x", "a storage with type, key, device and size"}},
        Row{"StorageOfAnotherSize",
            [] { return holding(tensor(storage("FloatStorage", "0", 5), integer(0), integer(4), integer(1))); },
            {"x", "5 elements of type F32", "16 bytes"}},
        Row{"StorageOfAnotherType",
            [] { return holding(tensor(storage("HalfStorage"), integer(0), integer(4), integer(1))); },
            {"x", "4 elements of type F16", "16 bytes"}},
        Row{"LongerThanItsStorage",
            [] { return holding(tensor(storage(), integer(0), integer(5), integer(1))); },
            {"x", "storage of 4", "[5]"}},
        Row{"BehindItsStorage",
            [] { return holding(tensor(storage(), integer(1), integer(4), integer(1))); },
            {"x", "storage of 4", "from element 1"}},
        Row{"BeforeItsStorage",
            [] { return holding(tensor(storage(), integer(-1), integer(4), integer(1))); },
            {"x", "storage of 4", "-1"}},
        Row{"OfNegativeExtent",
            [] { return holding(tensor(storage(), integer(0), integer(-4), integer(1))); },
            {"x", "extents of at least 0", "-4"}},
        Row{"OfTwoTo60Numbers",
            [] {
              const std::string extent = "\x8a\x08" + bytes(1ULL << 60);
              return holding(tensor(storage(), integer(0), extent, integer(1)));
            },
            {"x", "storage of 4", "1152921504606846976"}},
        Row{"OfTwoTo65Numbers",
            [] {
              const std::string extent = "\x8a\x04" + bytes(1U << 30);
              return holding(
                  tensor(storage(), integer(0), extent + extent + integer(32), integer(1) + integer(1) + integer(1)));
            },
            {"x", "storage of 4"}},
        Row{"OfAnIntegerOfManyBytes",
            [] { return holding(tensor(storage(), integer(0), "\x8a\x09" + std::string(9, '\1'), integer(1))); },
            {"8 bytes", "9"}},
        Row{"OfNineDimensions",
            [] { return holding(tensor(storage(), integer(0), repeated(9, integer(1)), repeated(9, integer(1)))); },
            {"x", "8 extents"}},
        Row{"StridesLeadBehindItsStorage",
            [] { return holding(tensor(storage(), integer(0), integer(2) + integer(2), integer(1) + integer(3))); },
            {"x", "storage of 4", "[2, 2]", "[1, 3]"}},
        Row{"StridesOverflow",
            [] {
              const std::string stride = "\x8a\x08" + bytes(1ULL << 62);
              return holding(tensor(storage(), integer(0), integer(5) + integer(2), stride + integer(1)));
            },
            {"x", "storage of 4", "4611686018427387904"}},
        Row{"ExpandedToTwoTo65Numbers",
            [] {
              const std::string extent = "\x8a\x04" + bytes(1U << 30);
              return holding(
                  tensor(storage(), integer(0), extent + extent + integer(32), integer(0) + integer(0) + integer(0)));
            },
            {"x", "storage of 4"}},
        Row{"ExpandedToMoreThan16MiB",
            [] {
              const std::string extent = "\x8a\x04" + bytes(1U << 23);
              return holding(tensor(storage(), integer(0), extent, integer(0)));
            },
            {"x", "16 MiB", "[8388608]"}},
        Row{"WithoutStrides",
            [] { return holding(tensor(storage(), integer(0), integer(4), "")); },
            {"x", "a stride for each extent", "[]"}},
        Row{"OfTextForAnExtent",
            [] { return holding(tensor(storage(), integer(0), text("4"), integer(1))); },
            {"x", "extents", "a str"}},
        Row{"OfTextForAnOffset",
            [] { return holding(tensor(storage(), text("0"), integer(4), integer(1))); },
            {"x", "an offset"}},
        Row{"Twice",
            [] { return pickled("\x80\x02}(" + text("x") + good + text("x") + good + "u."); },
            {"x", "another tensor of this name"}}),
    [](const auto& row) { return row.param.name; });

TEST(HostileTorchBin, EveryTruncationIsRefused) {
  const std::string whole = holding(good);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    TensorSet set;
    const ByteSource source(std::as_bytes(std::span(whole).first(size)), "cut");
    EXPECT_THROW(read_torch_bin(source, set), Error) << size << " bytes";
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

TEST(HostileTorchBin, EveryFlipIsRefusedOrHarmless) {
  const Folder folder;
  const fs::path path = folder / "pytorch_model.bin", from = fs::path(GOLDEN_FOLDER) / "torch" / "tied";
  for (const auto& entry : fs::directory_iterator(from)) fs::copy_file(entry.path(), folder / entry.path().filename());
  const std::string whole = read_text(path);
  ASSERT_TRUE(loads(path));
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

}  // namespace refused_torch_test
