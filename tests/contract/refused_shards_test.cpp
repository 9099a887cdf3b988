// What load() refuses in an index of shards and what it names: one row each, with the words that the message must have.
#include "support/burden.hpp"
#include "support/files.hpp"

namespace refused_shards_test {

using namespace minimamba;
using support::Change;
using support::Folder;
using support::header_text;
using support::instead_of;
using support::is;
using support::Refusal;
using support::safetensors_file;
using support::write;
namespace fs = std::filesystem;

class RefusedShards : public testing::TestWithParam<Refusal> {};
TEST_P(RefusedShards, AreNamedAndLeaveEverythingAsItWas) { support::expect_refused(GetParam()); }
std::string name_of_row(const testing::TestParamInfo<Refusal>& row) { return row.param.name; }

const std::string weights = "model.safetensors", index_name = "model.safetensors.index.json";

const std::string norm_f = "backbone.norm_f.weight";

/// Two shards that hold a saved model: its first tensor, and the rest. `change` edits the text of their index.
Change sharded(const std::function<void(std::string&)>& change = [](std::string&) {}) {
  return [=](const Folder& folder) {
    const std::string file = support::read_text(folder / weights);
    std::uint64_t length = 0;
    std::memcpy(&length, file.data(), sizeof(length));
    auto header = nlohmann::ordered_json::parse(file.substr(sizeof(length), length));
    const std::string data = file.substr(sizeof(length) + length), first = "backbone.embeddings.weight";
    nlohmann::ordered_json head{{first, header[first]}}, index{{"weight_map", {{first, "1.safetensors"}}}};
    header.erase("__metadata__");
    header.erase(first);
    for (auto& [name, tensor] : header.items()) {
      for (auto& offset : tensor["data_offsets"]) offset = offset.get<int>() - 512;
      index["weight_map"][name] = "2.safetensors";
    }
    support::write_text(folder / "1.safetensors", safetensors_file(head.dump(), data.substr(0, 512)));
    support::write_text(folder / "2.safetensors", safetensors_file(header.dump(), data.substr(512)));
    std::string text = index.dump();
    change(text);
    support::write_text(folder / index_name, text);
    fs::remove(folder / weights);
  };
}
Change index_with(const std::string& from, const std::string& to) {
  return sharded([=](std::string& text) { support::replace(text, from, to); });
}
Change shard_with(const std::function<void(const fs::path&)>& make) {
  return [=](const Folder& folder) {
    sharded()(folder);
    fs::remove(folder / "2.safetensors");
    make(folder / "2.safetensors");
  };
}
/// The shard of the last tensor is one of another name.
Change shard_named(const std::string& name) {
  return index_with(norm_f + R"(":"2.safetensors")", norm_f + "\":\"" + name + "\"");
}
const std::vector<std::string> plain{index_name, norm_f, "the plain name of a file"};

INSTANTIATE_TEST_SUITE_P(
    Index, RefusedShards,
    testing::Values(
        Refusal{"LeadsToTheParent", shard_named("../2.safetensors"), is<FormatError>, plain},
        Refusal{"LeadsBackIn", shard_named("./2.safetensors"), is<FormatError>, plain},
        Refusal{"LeadsBelow", shard_named("x/2.safetensors"), is<FormatError>, plain},
        Refusal{"LeadsToTheRoot", shard_named("/2.safetensors"), is<FormatError>, plain},
        Refusal{"LeadsElsewhereOnWindows", shard_named("..\\\\2.safetensors"), is<FormatError>, plain},
        Refusal{"NamesTheFolder", shard_named("."), is<FormatError>, plain},
        Refusal{"NamesTheParent", shard_named(".."), is<FormatError>, plain},
        Refusal{"NamesNothing", shard_named(""), is<FormatError>, plain},
        Refusal{"NameWithAZero", shard_named("2.safetensors\\u0000"), is<FormatError>, plain},
        Refusal{"NameWithAnEscape", shard_named("\\u001b[2J"), is<FormatError>, plain},
        Refusal{"NameTooLong", shard_named(std::string(100'000, 'n')), is<FormatError>, plain},
        Refusal{"NameIsANumber",
                index_with(norm_f + R"(":"2.safetensors")", norm_f + R"(":2)"),
                is<FormatError>,
                {index_name, norm_f, "number"}},
        Refusal{"NameIsAnObject",
                index_with(norm_f + R"(":"2.safetensors")", norm_f + R"(":{})"),
                is<FormatError>,
                {index_name, norm_f, "object"}},
        Refusal{"NamesAnAbsentShard", shard_named("0.safetensors"), is<FileError>, {"/0.safetensors", "no such file"}},
        Refusal{"NamesItself", shard_named(index_name), is<CheckpointError>, {"/2.safetensors", norm_f, index_name}},
        Refusal{"NamesTheWrongShard",
                shard_named("1.safetensors"),
                is<CheckpointError>,
                {index_name, norm_f, "this tensor in 1.safetensors", "no such tensor"}},
        Refusal{"NamesATensorThatIsNowhere",
                index_with("{\"backbone.e", R"({"lost":"1.safetensors","backbone.e)"),
                is<CheckpointError>,
                {index_name, "lost", "1.safetensors", "no such tensor"}},
        Refusal{"LacksATensor",
                index_with(",\"" + norm_f + R"(":"2.safetensors")", ""),
                is<CheckpointError>,
                {"/2.safetensors", norm_f, "the index does not list this tensor"}},
        Refusal{"NamesATensorTwice",
                index_with("{\"backbone.e", R"({"backbone.norm_f.weight":"1.safetensors","backbone.e)"),
                is<FormatError>,
                {index_name, norm_f, "occurs twice"}},
        Refusal{
            "WithoutAMap", index_with("weight_map", "weights"), is<FormatError>, {index_name, "weight_map", "none"}},
        Refusal{"MapIsAnArray",
                [](const Folder& f) {
                  sharded()(f);
                  write(index_name, R"({"weight_map":[]})")(f);
                },
                is<FormatError>,
                {index_name, "weight_map"}},
        Refusal{"Empty",
                [](const Folder& f) {
                  sharded()(f);
                  write(index_name, "")(f);
                },
                is<FormatError>,
                {index_name, "JSON"}},
        Refusal{"OfBrackets",
                [](const Folder& f) {
                  sharded()(f);
                  write(index_name, "{\"a\":" + std::string(5'000'000, '['))(f);
                },
                is<FormatError>,
                {index_name, "deep"}},
        Refusal{"FollowedByMore", index_with("}}", "}} x"), is<FormatError>, {index_name, "JSON"}},
        Refusal{"ShardIsAFolder", shard_with(support::make_folder), is<FileError>, {"/2.safetensors", "a folder"}},
        Refusal{"ShardIsAFifo", shard_with(support::make_fifo), is<FileError>, {"/2.safetensors", "special"}},
        Refusal{"ShardIsALinkToItself",
                shard_with(support::make_loop),
                is<FileError>,
                {"/2.safetensors", "symbolic links"}},
        Refusal{"ShardHoldsATensorOfAnother",
                [](const Folder& f) {
                  sharded()(f);
                  fs::copy_file(f / "1.safetensors", f / "2.safetensors", fs::copy_options::overwrite_existing);
                },
                is<CheckpointError>,
                {"/2.safetensors", "backbone.embeddings.weight", "another tensor of this name", "/1.safetensors"}}),
    name_of_row);

TEST(RefusedShards, AreRefusedAtTheFirstThatIsWrong) {
  const Folder folder;
  minimamba::save(support::Model(support::tiny_config()), folder.path());
  // A header that is slow to read, under a thousand names.
  nlohmann::json header, map;
  for (int i = 0; i < 10'000; ++i) {
    header["t" + std::to_string(i)] = {{"dtype", "F32"}, {"shape", {0}}, {"data_offsets", {0, 0}}};
  }
  support::write_text(folder / "s0", safetensors_file(header.dump()));
  map["t0"] = "s0";
  for (int i = 1; i < 1000; ++i) {
    const std::string number = std::to_string(i);
    map["t" + number] = "s" + number;
    fs::create_symlink("s0", folder / ("s" + number));
  }
  support::write_text(folder / index_name, nlohmann::json{{"weight_map", map}}.dump());
  support::expect_light([&] {
    try {
      load<support::Model>(folder / index_name);
      ADD_FAILURE() << "accepted";
    } catch (const CheckpointError& error) {
      support::expect_words(error.what(), {"/s0: t", "the index"});
    }
  });
}

TEST(Loading, TakesTheSingleFileWhereThereAreShardsToo) {
  const Folder folder;
  minimamba::save(support::Model(support::tiny_config()), folder.path());
  write(index_name, "no index at all")(folder);
  EXPECT_NO_THROW(load<support::Model>(folder.path()));
}

TEST(Loading, JoinsShardsHoweverTheirIndexBegins) {
  for (const char* beginning : {"", "\n  ", "\xEF\xBB\xBF"}) {
    const Folder folder;
    minimamba::save(support::Model(support::tiny_config()), folder.path());
    sharded([&](std::string& text) { text.insert(0, beginning); })(folder);
    EXPECT_NO_THROW(load<support::Model>(folder.path())) << beginning;
    fs::rename(folder / index_name, folder / "index");
    EXPECT_NO_THROW(load<support::Model>(folder / "index")) << beginning;
  }
}

}  // namespace refused_shards_test
