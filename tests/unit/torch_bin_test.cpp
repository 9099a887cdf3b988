// io/zip, io/pickle, io/torch_bin: what torch.save writes. What is refused is in tests/contract.
#include "minimamba/io/torch_bin.hpp"
#include "support/files.hpp"
#include "support/torch_files.hpp"

namespace torch_bin_test {

using namespace minimamba;
using support::copy_of;
using support::Folder;
using support::Model;
using support::random_tokens;
namespace fs = std::filesystem;

const fs::path data_folder = GOLDEN_FOLDER;

template <class M>
auto logits_of(const M& model) {
  auto cache = model.make_cache();
  return copy_of(model.forward(random_tokens(20, 30), cache));
}

TEST(TorchBin, GivesTheLogitsOfTheSameCheckpointInSafetensors) {
  const auto expected = logits_of(load<Model>(data_folder / "odd-hf"));
  for (const char* const name :
       {"tied", "recent", "sharded", "tied/pytorch_model.bin", "sharded/pytorch_model.bin.index.json"}) {
    const fs::path path = data_folder / "torch" / name;
    EXPECT_TRUE(identical(logits_of(load<Model>(path)), expected)) << name;
    EXPECT_EQ(open_checkpoint(path).format, CheckpointFormat::torch) << name;
  }
}

TEST(TorchBin, IsRecognisedByItsContent) {
  const Folder folder;
  fs::copy_file(data_folder / "odd-hf" / "config.json", folder / "config.json");
  fs::copy_file(data_folder / "torch" / "tied" / "pytorch_model.bin", folder / "model.safetensors");
  EXPECT_EQ(open_checkpoint(folder.path()).format, CheckpointFormat::torch);
  fs::copy_file(data_folder / "odd-hf" / "model.safetensors", folder / "weights.bin");
  EXPECT_EQ(open_checkpoint(folder / "weights.bin").format, CheckpointFormat::safetensors);
  for (const char* const name : {"model.safetensors", "weights.bin"}) {
    const CheckpointFormat format = open_checkpoint(folder / name).format;
    fs::rename(folder / name, folder / "weights.json");
    EXPECT_EQ(open_checkpoint(folder / "weights.json").format, format) << name;
  }
}

TEST(TorchBin, OfAnotherNameIsFoundWhereItIsTheOnlyFileOfWeights) {
  const Folder folder;
  fs::copy_file(data_folder / "odd-hf" / "config.json", folder / "config.json");
  EXPECT_THROW(open_checkpoint(folder.path()), FileError);
  for (const char* const name : {"a.pth", "a.pt", "a.bin"}) {
    fs::copy_file(data_folder / "torch" / "tied" / "pytorch_model.bin", folder / name);
    EXPECT_EQ(open_checkpoint(folder.path()).weights_name, (folder / name).string());
    if (std::string(name) != "a.bin") fs::remove(folder / name);
  }
  fs::copy_file(data_folder / "odd-hf" / "model.safetensors", folder / "weights.safetensors");
  EXPECT_EQ(open_checkpoint(folder.path()).format, CheckpointFormat::safetensors);
  fs::remove(folder / "weights.safetensors");
  support::write_text(folder / "b.pt", "");
  try {
    open_checkpoint(folder.path());
    ADD_FAILURE() << "accepted";
  } catch (const FileError& error) {
    support::expect_words(error.what(), {"pytorch_model.bin", "2 files *.bin"});
  }
}

TEST(TorchBin, OfEveryTypeAndPartOfAStorageIsRead) {
  TensorSet set;
  read_torch_bin(ByteSource::open(data_folder / "torch" / "types.bin"), set);
  const auto numbers = [&](const char* name) {
    const StoredTensor& tensor = *set.find(name);
    std::vector<double> values(tensor.size());
    set.read(tensor, 0, std::span(values));
    return values;
  };
  std::vector<double> all(24);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<double>(i) - 5.5;
  using Shape = std::vector<std::uint64_t>;
  const std::map<std::string, DType> types{
      {"f64", DType::F64}, {"f32", DType::F32}, {"f16", DType::F16}, {"bf16", DType::BF16}};
  for (const auto& [name, dtype] : types) {
    EXPECT_EQ(set.find(name)->dtype, dtype);
    EXPECT_EQ(set.find(name)->shape, (Shape{2, 3, 4}));
    EXPECT_EQ(numbers(name.c_str()), all) << name;
  }
  EXPECT_EQ(set.find("i64")->dtype, DType::I64);
  EXPECT_EQ(set.find("part")->shape, (Shape{3, 4}));
  EXPECT_EQ(numbers("part"), std::vector<double>(all.begin() + 12, all.end()));
  EXPECT_EQ(set.find("column")->shape, (Shape{1, 1, 1}));
  EXPECT_EQ(numbers("column"), std::vector<double>{6.5});
  EXPECT_EQ(set.find("scalar")->shape, Shape{});
  EXPECT_EQ(numbers("scalar"), std::vector<double>{2.5});
  EXPECT_EQ(set.find("empty")->size(), 0U);
}

/// Numbers of the tensor x in a file that is made byte by byte.
std::vector<float> numbers_in(const std::string& file, std::size_t count) {
  TensorSet set;
  read_torch_bin({std::as_bytes(std::span(file)), "made"}, set);
  std::vector<float> values(count);
  set.read(*set.find("x"), 0, std::span(values));
  return values;
}

TEST(TorchBin, WithSizesOf64BitsInItsDirectoryIsRead) {
  namespace made = support::torch_files;
  const std::vector<float> numbers{1, 2, 3, 4};
  const std::string data(reinterpret_cast<const char*>(numbers.data()), 16), saturated(4, '\xFF');
  std::string file, directory;
  for (const auto& [name, contents] : {std::pair<std::string, std::string>("a/data.pkl", made::dict(made::good)),
                                       std::pair<std::string, std::string>("a/data/0", data)}) {
    const auto name_size = made::bytes(static_cast<std::uint16_t>(name.size()));
    const std::uint64_t size = contents.size(), at = file.size();
    const std::string extra = made::bytes(std::uint16_t{7}) + made::bytes(std::uint16_t{0}) +  // of another kind
                              made::bytes(std::uint16_t{1}) + made::bytes(std::uint16_t{24}) + made::bytes(size) +
                              made::bytes(size) + made::bytes(at);
    file += "PK\3\4" + std::string(22, '\0') + name_size + std::string(2, '\0') + name + contents;
    directory += "PK\1\2" + std::string(16, '\0') + saturated + saturated + name_size +
                 made::bytes(static_cast<std::uint16_t>(extra.size())) + std::string(10, '\0') + saturated + name +
                 extra;
  }
  const std::string end = "PK\5\6" + std::string(4, '\0') + made::bytes(std::uint16_t{2}) +
                          made::bytes(std::uint16_t{2}) + made::bytes(static_cast<std::uint32_t>(directory.size())) +
                          made::bytes(static_cast<std::uint32_t>(file.size())) + made::bytes(std::uint16_t{0});
  EXPECT_EQ(numbers_in(file + directory + end, 4), numbers);
}

TEST(TorchBin, WithADirectoryEndOf64BitsIsRead) {
  namespace made = support::torch_files;
  std::string file = made::holding(made::good);
  const std::size_t end = file.size() - 22;
  const auto narrow = [&](std::size_t at) {
    std::uint32_t value = 0;
    std::memcpy(&value, file.data() + end + at, sizeof(value));
    return std::uint64_t{value};
  };
  const std::string wide = "PK\6\6" + std::string(28, '\0') + made::bytes(std::uint64_t{2}) + made::bytes(narrow(12)) +
                           made::bytes(narrow(16));
  file.replace(end + 10, 10, 10, '\xFF');  // the narrow one no longer says where the directory is
  file.insert(end, wide + "PK\6\7" + made::bytes(0U) + made::bytes(std::uint64_t{end}) + made::bytes(1U));
  EXPECT_EQ(numbers_in(file, 4), numbers_in(made::holding(made::good), 4));
}

TEST(TorchBin, ReadsTensorsThatRepeatTheirElements) {
  namespace made = support::torch_files;
  const std::string file =
      made::holding(made::tensor(made::storage(), made::integer(1), made::integer(6), made::integer(0)));
  const std::vector<float> values = numbers_in(file, 6);
  EXPECT_EQ(values, std::vector<float>(6, values[0]));
}

TEST(TorchBin, WithANumberAmongItsTensorsIsRefused) {
  namespace made = support::torch_files;
  const std::string file = made::holding("G" + made::bytes(1.5));
  TensorSet set;
  try {
    read_torch_bin({std::as_bytes(std::span(file)), "made"}, set);
    ADD_FAILURE() << "accepted";
  } catch (const FormatError& error) {
    support::expect_words(error.what(), {"made: x", "a tensor, as in a state dict"});
  }
}

TEST(TorchBin, WithMoreTensorsThanACheckpointMayHoldIsRefused) {
  const std::string file = support::torch_files::holding(support::torch_files::good);
  TensorSet set;
  const std::size_t source = set.add_source({std::as_bytes(std::span(file)), "others"});
  for (int i = 0; i < 20'000; ++i) set.add({std::to_string(i), DType::F32, {0}, 0, source});
  try {
    read_torch_bin({std::as_bytes(std::span(file)), "made"}, set);
    ADD_FAILURE() << "accepted";
  } catch (const FormatError& error) {
    support::expect_words(error.what(), {"made", "20000 tensors in a checkpoint"});
  }
  EXPECT_EQ(set.tensors().size(), 20'000U);
}

TEST(Tensors, AreNotReadBeyondTheirEnd) {
  TensorSet set;
  read_torch_bin(ByteSource::open(data_folder / "torch" / "types.bin"), set);
  const StoredTensor& tensor = *set.find("f32");
  std::vector<float> values(24);
  set.read(tensor, 0, std::span(values));
  EXPECT_THROW(set.read(tensor, 1, std::span(values)), ArgumentError);
  EXPECT_THROW(set.read(tensor, 25, std::span(values).first(0)), ArgumentError);
  std::vector<std::byte> stored(96);
  set.read_stored(tensor, 0, stored);
  EXPECT_EQ(std::memcmp(stored.data(), values.data(), stored.size()), 0);
  EXPECT_THROW(set.read_stored(tensor, 1, stored), ArgumentError);
}

TEST(Tensors, AreGatheredByTheirStrides) {
  std::vector<float> numbers(7 * 5 * 300);
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i);
  const ByteSource source(std::as_bytes(std::span(numbers)), "numbers");
  using Sizes = std::vector<std::uint64_t>;
  const std::pair<Sizes, Sizes> layouts[] = {{{300, 35}, {1, 300}},  // transposed
                                             {{35, 100}, {300, 3}},  // columns
                                             {{35, 3}, {300, 100}},
                                             {{5, 7, 300}, {300, 1500, 1}},
                                             {{300, 5, 7}, {1, 300, 1500}},
                                             {{7, 300, 5}, {1500, 1, 300}},
                                             {{50, 300}, {0, 1}},  // expanded
                                             {{9000}, {0}},
                                             {{300, 50}, {1, 0}},
                                             {{2, 1, 1000}, {5000, 17, 5}}};
  for (const auto& [shape, strides] : layouts) {
    TensorSet set;
    set.add({"x", DType::F32, shape, 0, set.add_source(source), strides});
    const StoredTensor& tensor = *set.find("x");
    std::vector<double> expected, all(tensor.size());
    for (std::uint64_t i = 0; i < tensor.size(); ++i) {
      std::uint64_t rest = i, place = 0;
      for (std::size_t j = shape.size(); j-- > 0; rest /= shape[j]) place += rest % shape[j] * strides[j];
      expected.push_back(static_cast<double>(place));
    }
    set.read(tensor, 0, std::span(all));
    EXPECT_EQ(all, expected) << shape_text(shape);
    for (const std::size_t first : {1U, 33U, 103U}) {
      std::vector<float> part(std::min<std::size_t>(all.size() - first, 777));
      set.read(tensor, first, std::span(part));
      EXPECT_TRUE(std::equal(part.begin(), part.end(), expected.begin() + static_cast<std::ptrdiff_t>(first)));
    }
  }
}

TEST(TorchBin, OfTheOldFormatIsRefusedWithTheLineThatConvertsIt) {
  TensorSet set;
  try {
    read_torch_bin(ByteSource::open(data_folder / "torch" / "legacy.bin"), set);
    ADD_FAILURE() << "accepted";
  } catch (const FormatError& error) {
    support::expect_words(error.what(), {"legacy.bin", "1.6", "torch.save(torch.load(", "before version 1.6"});
  }
  // Also where a frame of protocol 4 comes first, and no config.json lies beside it.
  std::string file = support::read_text(data_folder / "torch" / "legacy.bin");
  file.insert(2, "\x95" + std::string(8, '\1'));
  file[1] = 4;
  const Folder folder;
  support::write_text(folder / "old.bin", file);
  try {
    load<Model>(folder / "old.bin");
    ADD_FAILURE() << "accepted";
  } catch (const FormatError& error) {
    support::expect_words(error.what(), {"old.bin", "1.6", "torch.save(torch.load(", "before version 1.6"});
  }
}

}  // namespace torch_bin_test
