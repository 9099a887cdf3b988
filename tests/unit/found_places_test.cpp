// Where the files of a model may lie: beside older ones, in a cache, in parts, in memory.
#include "minimamba/text.hpp"
#include "support/found_files.hpp"

namespace found_places_test {

using namespace minimamba;
namespace fs = std::filesystem;
using support::config_with;
using support::expect_note;
using support::Folder;
using support::FoundFiles;
using support::identical;
using support::load_noting;
using support::Loaded;
using support::logits_of;
using support::Model;
using support::read_text;
using support::tiny;
using support::weights;
using support::write_text;

TEST_F(FoundFiles, InOnePieceComeBeforeTheirShardsInPyTorchsFormatToo) {
  const Folder other;
  const fs::path from = fs::path(GOLDEN_FOLDER) / "torch" / "tied";
  for (const auto& file : fs::directory_iterator(from)) fs::copy(file.path(), other / file.path().filename().string());
  write_text(other / "pytorch_model.bin.index.json", "{}");
  const Loaded loaded = load_noting(other.path());
  expect_note(loaded.notes, {"pytorch_model.bin.index.json was not read", "pytorch_model.bin exists"});
  config_with("state_size", 6)(other);
  for (const auto& body : std::vector<std::function<void()>>{
           [&] { load<Model>(other.path()); }, [&] { save(open_checkpoint(other.path()), other / "again"); },
           [&] { save_gguf(open_checkpoint(other.path()), other / "again.gguf"); }}) {
    try {
      body();
      ADD_FAILURE() << "accepted";
    } catch (const CheckpointError& error) {
      support::expect_words(error.what(), {"pytorch_model.bin: ", "pytorch_model.bin.index.json", "not read"});
    }
  }
}

TEST_F(FoundFiles, InOnePieceComeBeforeTheirShards) {
  write_text(folder / "model.safetensors.index.json", "{}");
  expect_note(expect_same_model().notes, {"model.safetensors.index.json was not read", "model.safetensors exists"});
  config_with("state_size", 5)(folder);
  try {
    load<Model>(folder.path());
    ADD_FAILURE() << "accepted";
  } catch (const CheckpointError& error) {
    support::expect_words(error.what(),
                          {"model.safetensors: ", "state_size 5", "model.safetensors.index.json", "not read"});
  }
  write_text(folder / weights, "stale");
  try {
    load<Model>(folder.path());
    ADD_FAILURE() << "accepted";
  } catch (const FormatError& error) {
    support::expect_words(error.what(), {"model.safetensors: ", "model.safetensors.index.json", "not read"});
  }
}

TEST_F(FoundFiles, MayLieInTheCacheOfHuggingFace) {
  const fs::path root = folder / "models--a--b", snapshot = root / "snapshots" / "0123abc";
  fs::create_directories(snapshot);
  fs::create_directories(root / "blobs");
  fs::create_directories(root / "refs");
  for (const std::string& name : {weights, std::string("config.json")}) {
    fs::rename(folder / name, root / "blobs" / name);
    fs::create_symlink("../../blobs/" + name, snapshot / name);
  }
  write_text(root / "refs" / "main", "0123abc\n");
  EXPECT_TRUE(identical(logits_of(load<Model>(root)), expected));
  EXPECT_EQ(open_checkpoint(root).folder, snapshot);
  fs::copy_file(fs::path(GOLDEN_FOLDER) / "../../fuzz/corpus/tokenizer/small.json", snapshot / "tokenizer.json");
  EXPECT_EQ(Tokenizer::load(root).size(), Tokenizer::load(snapshot).size());
  for (const char* const bad : {"../../..", "", "a/b", "gone"}) {
    write_text(root / "refs" / "main", bad);
    EXPECT_THROW(load<Model>(root), Error) << bad;
  }
}

/// A GGUF file cut into parts as llama.cpp does: the metadata in the first, the tensors one after the other.
void split_gguf(const fs::path& path, std::size_t parts, std::size_t more_than_there_are = 0) {
  const Checkpoint whole = open_checkpoint(path);
  std::vector<const StoredTensor*> tensors;
  for (const auto& [name, tensor] : whole.tensors.tensors()) tensors.push_back(&tensor);
  for (std::size_t part = 0; part < parts; ++part) {
    GgufMetadata metadata = part == 0 ? whole.metadata : GgufMetadata();
    metadata["split.no"] = std::uint64_t{part};
    metadata["split.count"] = std::uint64_t{parts};
    metadata["split.tensors.count"] = std::uint64_t{tensors.size() + more_than_there_are};
    std::vector<StoredTensor> own;
    std::string data;
    for (std::size_t i = part; i < tensors.size(); i += parts) {
      std::vector<float> numbers(tensors[i]->size());
      whole.tensors.read(*tensors[i], 0, std::span(numbers));
      data.resize((data.size() + 31) / 32 * 32);
      own.push_back({.name = tensors[i]->name, .shape = tensors[i]->shape, .begin = data.size()});
      data.append(reinterpret_cast<const char*>(numbers.data()), 4 * numbers.size());
    }
    detail::GgufHeaderWriter writer(own.size(), metadata.size());
    for (const auto& [key, value] : metadata) writer.pair(key, value);
    for (const StoredTensor& tensor : own) writer.tensor(tensor);
    const std::string number = "0000" + std::to_string(part + 1) + "-of-0000" + std::to_string(parts);
    write_text(path.parent_path() / ("model-" + number + ".gguf"), std::move(writer).finish() + data);
  }
  fs::remove(path);
}

TEST_F(FoundFiles, MayBeGgufInParts) {
  fs::remove(folder / weights);
  save_gguf(tiny(), folder / "model.gguf");
  split_gguf(folder / "model.gguf", 3);
  expect_same_model();
  EXPECT_TRUE(identical(logits_of(load<Model>(folder / "model-00002-of-00003.gguf")), expected));
  save_gguf(open_checkpoint(folder.path()), folder / "whole" / "model.gguf");
  EXPECT_TRUE(identical(logits_of(load<Model>(folder / "whole" / "model.gguf")), expected));
  fs::rename(folder / "model-00002-of-00003.gguf", folder / "other.gguf");
  EXPECT_THROW(load<Model>(folder / "other.gguf"), FormatError);
  try {
    load<Model>(folder / "model-00001-of-00003.gguf");
    ADD_FAILURE() << "accepted";
  } catch (const FileError& error) {
    support::expect_words(error.what(), {"model-00002-of-00003.gguf", "part 2 of 3", "is missing"});
  }
  fs::copy(folder / "model-00003-of-00003.gguf", folder / "model-00002-of-00003.gguf");
  EXPECT_THROW(load<Model>(folder / "model-00001-of-00003.gguf"), Error);
}

TEST_F(FoundFiles, MayNotBePartsThatCountMoreTensorsThanTheyHave) {
  save_gguf(tiny(), folder / "parts" / "model.gguf");
  split_gguf(folder / "parts" / "model.gguf", 2, 1);
  try {
    load<Model>(folder / "parts" / "model-00001-of-00002.gguf");
    ADD_FAILURE() << "accepted";
  } catch (const CheckpointError& error) {
    support::expect_words(error.what(), {"model-00001-of-00002.gguf", "tensors in all parts together"});
  }
}

TEST_F(FoundFiles, MayNotHoldMoreThan20000TensorsInAllPartsTogether) {
  const auto part = [](int number) { return "model-0000" + std::to_string(number) + "-of-00002.gguf"; };
  for (const int number : {1, 2}) {
    detail::GgufHeaderWriter writer(10'001, 2);
    writer.pair("split.no", std::uint64_t(number - 1));
    writer.pair("split.count", std::uint64_t{2});
    for (int i = 0; i < 10'001; ++i) {
      writer.tensor({.name = std::to_string(number) + "." + std::to_string(i), .shape = {0}});
    }
    write_text(folder / part(number), std::move(writer).finish());
  }
  TensorSet set;
  try {
    detail::read_gguf_parts(folder / part(1), ByteSource::open(folder / part(1)), set);
    ADD_FAILURE() << "accepted";
  } catch (const FormatError& error) {
    support::expect_words(error.what(), {part(2), "20000 tensors in all parts together", "20002"});
  }
  EXPECT_TRUE(set.tensors().empty());
}

TEST_F(FoundFiles, MayBeGgufWithATokenizerWhereTheWeightsAre) {
  TokenizerParts parts;
  for (unsigned byte = 0; byte < 256; ++byte) parts.tokens.push_back(detail::byte_spelling(byte));
  parts.tokens.emplace_back("ab");
  parts.merges = {"a b"};
  const std::vector<std::int32_t> ids = {256};
  const auto save_as = [&](const fs::path& path) {
    save_gguf(open_checkpoint(folder.path()), path, {}, gguf_tokenizer(parts, tiny().config().padded_vocab_size()));
  };
  save_as(folder / "split" / "model.gguf");
  split_gguf(folder / "split" / "model.gguf", 3);
  EXPECT_EQ(Tokenizer::load(folder / "split").encode("ab"), ids);
  for (const char* const part : {"model-00001-of-00003.gguf", "model-00003-of-00003.gguf"}) {
    EXPECT_EQ(Tokenizer::load(folder / "split" / part).encode("ab"), ids) << part;
  }
  save_as(folder / "capitals" / "model.gguf");
  fs::rename(folder / "capitals" / "model.gguf", folder / "capitals" / "MODEL.GGUF");
  EXPECT_EQ(Tokenizer::load(folder / "capitals").encode("ab"), ids);
  fs::remove(folder / "split" / "model-00001-of-00003.gguf");
  try {
    Tokenizer::load(folder / "split" / "model-00002-of-00003.gguf");
    ADD_FAILURE() << "accepted";
  } catch (const FileError& error) {
    support::expect_words(error.what(), {"model-00001-of-00003.gguf", "no such file"});
  }
  EXPECT_THROW(Tokenizer::load(folder / "split"), FileError);
}

TEST_F(FoundFiles, MayBeBytesInMemory) {
  const std::string bytes = read_text(folder / weights), config = read_text(folder / "config.json");
  const ByteSource source(std::as_bytes(std::span(bytes)), "weights"), text(std::as_bytes(std::span(config)), "config");
  EXPECT_TRUE(identical(logits_of(load<Model>(open_checkpoint(source, text))), expected));
  save_gguf(tiny(), folder / "model.gguf");
  const std::string gguf = read_text(folder / "model.gguf");
  const Checkpoint whole = open_checkpoint(ByteSource(std::as_bytes(std::span(gguf)), "whole"), text);
  EXPECT_TRUE(identical(logits_of(load<Model>(whole)), expected)) << "its configuration is in it";
}

TEST_F(FoundFiles, ReportTheLayoutOfTheirSettings) {
  EXPECT_TRUE(open_checkpoint(fs::path(GOLDEN_FOLDER) / "tiny-official").has_official_names());
  EXPECT_FALSE(open_checkpoint(fs::path(GOLDEN_FOLDER) / "tiny-hf").has_official_names());
  EXPECT_FALSE(open_checkpoint(fs::path(GOLDEN_FOLDER) / "gguf" / "tied.gguf").has_official_names());
}

}  // namespace found_places_test
