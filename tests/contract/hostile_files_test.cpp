// Files that mean harm: every truncation, many flips of bits, and headers that ask for time and memory.
#include "support/burden.hpp"
#include "support/files.hpp"

namespace hostile_files_test {

using namespace minimamba;
using support::Folder;
using support::Model;
using support::read_text;
using support::safetensors_file;
using support::write_text;
namespace fs = std::filesystem;

/// The smallest model that has everything.
MambaConfig smallest() {
  return {.d_model = 2,
          .n_layer = 1,
          .vocab_size = 3,
          .d_state = 1,
          .d_conv = 2,
          .expand = 1,
          .pad_vocab_size_multiple = 1,
          .bias = true,
          .tie_embeddings = false};
}

/// Loads a model and runs it: an Error, or a model that works.
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

/// Overwrites a file in place, which costs less than making it anew.
void overwrite(const fs::path& path, const std::string& text) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file << text;
}

/// Moves the weights into a shard, which an index names.
void shard(const Folder& folder) {
  const Checkpoint checkpoint = open_checkpoint(folder.path());
  std::string map;
  for (const auto& [name, tensor] : checkpoint.tensors.tensors()) {
    map += (map.empty() ? "\"" : ",\"") + name + "\":\"1.safetensors\"";
  }
  fs::rename(folder / "model.safetensors", folder / "1.safetensors");
  write_text(folder / "model.safetensors.index.json", "{\"weight_map\":{" + map + "}}");
}

TEST(HostileFiles, EveryTruncationIsRefused) {
  for (const std::string name : {"model.safetensors", "config.json", "model.safetensors.index.json"}) {
    const Folder folder;
    save(Model(smallest()), folder.path());
    if (name.ends_with("index.json")) shard(folder);
    const std::string whole = read_text(folder / name);
    ASSERT_LE(whole.size(), 16384U);
    ASSERT_TRUE(loads(folder.path()));
    const std::size_t meaning = whole.find_last_not_of(" \n") + 1;  // behind it config.json is complete
    for (std::size_t size = meaning; size-- > 0;) {
      fs::resize_file(folder / name, size);
      EXPECT_FALSE(loads(folder.path())) << name << " of " << size << " bytes";
    }
  }
}

TEST(HostileFiles, EveryFlipIsRefusedOrHarmless) {
  const Folder folder;
  save(Model(smallest()), folder.path());
  Random random(1);
  int loaded = 0;
  for (int round = 0; round < 10'000; ++round) {
    const fs::path path = folder / (round % 4 == 0 ? "config.json" : "model.safetensors");
    const std::string whole = read_text(path);
    std::string changed = whole;
    for (int flips = round % 3; flips >= 0; --flips) {
      const std::uint64_t bits = random.bits();
      char& byte = changed[(bits >> 8) % changed.size()];
      byte = static_cast<char>(byte ^ (1 << (bits % 8)));
    }
    overwrite(path, changed);
    loaded += loads(folder.path()) ? 1 : 0;
    overwrite(path, whole);
  }
  EXPECT_GT(loaded, 500);
  EXPECT_LT(loaded, 9'500);
  EXPECT_TRUE(loads(folder.path()));
}

/// A folder that asks for too much, or for all that is allowed.
struct Burden {
  std::string name;
  std::function<void(const Folder&)> make;
  std::vector<std::string> words;
  friend std::ostream& operator<<(std::ostream& out, const Burden& burden) { return out << burden.name; }
};

class HostileFolder : public testing::TestWithParam<Burden> {};

TEST_P(HostileFolder, IsRefusedWithinASecondAndFiftyMegabytes) {
  const Folder folder;
  save(Model(smallest()), folder.path());
  GetParam().make(folder);
  support::expect_light([&] {
    try {
      load<Model>(folder.path());
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      support::expect_words(error.what(), GetParam().words);
    }
  });
}

std::function<void(const Folder&)> file(const std::string& name, const std::function<std::string()>& text) {
  return [=](const Folder& folder) { write_text(folder / name, text()); };
}
std::function<void(const Folder&)> header(const std::function<std::string()>& text) {
  return file("model.safetensors", [=] { return safetensors_file(text()); });
}
std::function<void(const Folder&)> shard_index(const std::function<std::string()>& text) {
  return [=](const Folder& folder) {
    fs::remove(folder / "model.safetensors");
    write_text(folder / "model.safetensors.index.json", text());
  };
}
std::string repeated(const std::string& first, std::size_t count, const std::string& unit, const std::string& last) {
  std::string text = first;
  text.reserve(first.size() + count * unit.size() + last.size());
  for (std::size_t i = 0; i < count; ++i) text += unit;
  return text + last;
}
/// Members "0":value, "1":value ... with names of a length.
std::string members(std::size_t count, std::size_t length, const std::string& value) {
  std::string text;
  for (std::size_t i = 0; i < count; ++i) {
    std::string name = std::to_string(i);
    name.resize(std::max(length, name.size()), 'n');
    text += (i == 0 ? "\"" : ",\"") + name + "\":" + value;
  }
  return text;
}
std::string in_braces(const std::string& text) { return "{" + text + "}"; }
const std::string nothing = R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
const std::string weights = "model.safetensors", index_name = "model.safetensors.index.json";

/// 100 MB that begin like this and go on as zeros, which take no room on the disk.
std::function<void(const Folder&)> header_of_zeros(const std::string& text) {
  return [=](const Folder& folder) {
    std::string whole = safetensors_file(text);
    const std::uint64_t length = 100'000'000;
    std::memcpy(whole.data(), &length, sizeof(length));
    write_text(folder / weights, whole);
    fs::resize_file(folder / weights, sizeof(length) + length);
  };
}

INSTANTIATE_TEST_SUITE_P(
    Of, HostileFolder,
    testing::Values(
        Burden{"BracketsForConfiguration",
               file("config.json", [] { return std::string(5'000'000, '['); }),
               {"config.json", "1048576 bytes"}},
        Burden{"BracketsForConfigurationWithinItsSize",
               file("config.json", [] { return std::string(1 << 20, '['); }),
               {"config.json", "8 deep"}},
        Burden{"BracketsForAnIndex", shard_index([] { return std::string(5'000'000, '['); }), {index_name}},
        Burden{"BracketsInAnIndex",
               shard_index([] { return "{\"a\":" + std::string(5'000'000, '['); }),
               {index_name, "deep"}},
        Burden{
            "BracketsInAHeader", header([] { return "{\"a\":" + std::string(5'000'000, '['); }), {weights, "an array"}},
        Burden{"ZerosInAHeader", header_of_zeros(""), {weights, "'{'"}},
        Burden{"ZerosInAHeaderBehindABrace", header_of_zeros("{"), {weights, "zero byte"}},
        Burden{"SpacesInAHeader",
               header([] { return "{" + std::string(99'999'999, ' '); }),
               {weights, "tokens of at most"}},
        Burden{"OneGiantName",
               header([] { return "{\"" + std::string(99'000'000, 'n') + "\":1}"; }),
               {weights, "tokens of at most"}},
        Burden{"OneGiantNumber",
               header([] { return R"({"a":{"dtype":"U8","shape":[)" + std::string(99'000'000, '1') + "]}}"; }),
               {weights, "tokens of at most"}},
        Burden{"NumbersAsLongAsTheyMayBe",
               header([] {
                 return R"({"a":{"dtype":"U8","shape":[)" +
                        repeated("", 90, "0." + std::string(1'000'000, '1') + ",", "0]}}");
               }),
               {weights, "shape"}},
        Burden{"MetadataOfEscapes",
               header([] { return repeated("{\"__metadata__\":{\"a\":\"", 16'000'000, "\\u0041", "\"}}"); }),
               {weights, "tokens of at most"}},
        Burden{"MetadataAsLongAsItMayBe",
               header([] {
                 return "{\"__metadata__\":{" + members(16, 0, "\"" + std::string(1'040'000, 'm') + "\"") + "}}";
               }),
               {weights, "backbone"}},
        Burden{"MetadataWithoutEnd",
               header([] {
                 return "{\"__metadata__\":{" + members(95, 0, "\"" + std::string(1'040'000, 'm') + "\"") + "}}";
               }),
               {weights, "__metadata__", "16777216"}},
        Burden{"KeysOfMetadata",
               header([] { return "{\"__metadata__\":{" + members(5'000'000, 0, "\"\"") + "}}"; }),
               {weights, "__metadata__", "keys"}},
        Burden{"LongNames", header([] { return in_braces(members(95, 1'000'000, nothing)); }), {weights, "names"}},
        Burden{"AsManyTensorsAsThereMayBe",
               header([] {
                 return in_braces(
                     members(20'000, 200, R"({"dtype":"U8","shape":[0,1,1,1,1,1,1,1],"data_offsets":[0,0]})"));
               }),
               {weights, "backbone"}},
        Burden{"MoreTensors", header([] { return in_braces(members(1'500'000, 0, nothing)); }), {weights, "20000"}},
        Burden{"DimensionsWithoutEnd",
               header([] { return R"({"a":{"dtype":"U8","shape":[)" + repeated("1", 49'000'000, ",1", "]}}"); }),
               {weights, "dimensions"}},
        Burden{"AsManyLayersAsThereMayBe",
               [](const Folder& folder) { support::config_with("num_hidden_layers", 16384)(folder); },
               {weights, "num_hidden_layers 16384"}},
        Burden{"AsLongAnIndexAsThereMayBe",
               shard_index([] {
                 return in_braces("\"weight_map\":" +
                                  in_braces(members(20'000, 350, "\"" + std::string(50, 's') + "\"")));
               }),
               {"sss", "no such file"}},
        Burden{"ALongerIndex",
               shard_index([] { return in_braces("\"weight_map\":" + in_braces(members(20'000, 450, "\"s\""))); }),
               {index_name, "8388608"}},
        Burden{"AnIndexOfManyTensors",
               shard_index([] { return in_braces("\"weight_map\":" + in_braces(members(300'000, 0, "\"s\""))); }),
               {index_name, "values"}},
        Burden{"AnIndexOfManyShards",
               shard_index([] {
                 std::string text;
                 for (int i = 0; i < 20'000; ++i)
                   text += (i == 0 ? "\"" : ",\"") + std::to_string(i) + "\":\"" + std::to_string(i) + "\"";
                 return in_braces("\"weight_map\":" + in_braces(text));
               }),
               {index_name, "1024 shards", "20000"}},
        Burden{"AConfigurationAsLargeAsItMayBe",
               file("config.json", [] { return in_braces(members(40'000, 0, "[[[[[0]]]]]")); }),
               {"config.json", "values"}}),
    [](const testing::TestParamInfo<Burden>& row) { return row.param.name; });

TEST(HostileFolders, AreRefusedTogether) {
  const Folder folder;
  save(Model(smallest()), folder.path());
  std::string map;
  for (int shard = 0; shard < 30; ++shard) {  // each within its limits, not all of them
    const std::string name = std::to_string(shard) + ".safetensors";
    map += (shard == 0 ? "\"" : ",\"") + std::to_string(shard) + "\":\"" + name + "\"";
    std::string tensors = in_braces(members(19'000, 0, nothing));
    for (std::size_t at = 0; (at = tensors.find("\":{", at)) != tensors.npos; at += 3)
      tensors[at - 1] = static_cast<char>('A' + shard);
    write_text(folder / name, safetensors_file(tensors));
  }
  shard_index([&] { return in_braces("\"weight_map\":" + in_braces(map)); })(folder);
  support::reset_peak_memory();
  const long before = support::peak_memory();
  EXPECT_THROW(load<Model>(folder.path()), Error);
  const long memory = support::peak_memory() - before;
  RecordProperty("kilobytes", static_cast<int>(memory / 1000));
  if (!support::under_a_sanitizer) {
    EXPECT_LT(memory, 50'000'000);
  }
}

}  // namespace hostile_files_test
