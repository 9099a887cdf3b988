// The parameters of a module that a user made, in one file.
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "support/files.hpp"

namespace parameter_file_test {

using namespace minimamba;
namespace fs = std::filesystem;
using support::Folder;
using support::read_text;
using support::write_text;

/// A classifier: normalise, project, and tell classes apart. Only its last layer has a bias.
template <class Scalar, template <class> class Backend, class Weight>
struct Body {
  RMSNorm<Scalar, Backend> norm{width, 1e-5};
  Linear<Scalar, Backend, Weight> project{width, 40, false};
  static constexpr std::size_t width = 33;  // two blocks, the second not full

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("norm", self.norm...);
    f("project", self.project...);
  }
};
template <class ScalarType, template <class> class BackendTemplate, class WeightType>
struct ClassifierOf {
  using Scalar = ScalarType;
  using Backend = BackendTemplate<Scalar>;
  Body<Scalar, BackendTemplate, WeightType> body;
  Linear<Scalar, BackendTemplate, WeightType> head{40, 5, true};

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("body", self.body...);
    f("head", self.head...);
  }
};
using Classifier = ClassifierOf<float, ReferenceBackend, float>;
const ReferenceBackend<float> reference;
const std::vector<std::string> names{"body.norm.weight", "body.project.weight", "head.weight", "head.bias"};

template <class Module>
Module filled(std::uint64_t seed, double scale = 1) {
  using Scalar = typename Module::Scalar;
  const typename Module::Backend backend;
  Module module;
  for_each_parameter(
      [&](std::string_view name, auto& parameter) {
        Random random(seed, name);
        parameter.allocate(backend);
        support::HostMatrix<Scalar> values(parameter.rows(), parameter.cols());
        for (Scalar& x : values.values) x = static_cast<Scalar>(scale * random.normal());
        parameter.upload(backend, 0, values.view());
      },
      module);
  return module;
}

/// All numbers, as the module gives them back.
template <class Module>
std::map<std::string, std::vector<typename Module::Scalar>> numbers_of(const Module& module) {
  const typename Module::Backend backend;
  std::map<std::string, std::vector<typename Module::Scalar>> all;
  for_each_parameter(
      [&](std::string_view name, const auto& parameter) {
        support::HostMatrix<typename Module::Scalar> values(parameter.rows(), parameter.cols());
        parameter.download(backend, 0, values.view());
        all[std::string(name)].assign(values.values.begin(), values.values.end());
      },
      module);
  return all;
}

template <class Module>
void expect_round_trip(DType matrices) {
  const Folder folder;
  const typename Module::Backend backend;
  const Module module = filled<Module>(1);
  save_parameters(module, backend, folder / "head.safetensors");
  Module old = filled<Module>(2), fresh;  // over others, and into a module without memory
  load_parameters(old, backend, folder / "head.safetensors");
  load_parameters(fresh, backend, folder / "head.safetensors");
  EXPECT_TRUE(numbers_of(old) == numbers_of(module));
  EXPECT_TRUE(numbers_of(fresh) == numbers_of(module));
  save_parameters(fresh, backend, folder / "again.safetensors");
  EXPECT_TRUE(read_text(folder / "again.safetensors") == read_text(folder / "head.safetensors"));

  TensorSet tensors;
  read_safetensors(ByteSource::open(folder / "head.safetensors"), tensors);
  EXPECT_EQ(tensors.tensors().size(), names.size());
  for (const std::string& name : names) {
    const StoredTensor* const stored = tensors.find(name);
    ASSERT_NE(stored, nullptr) << name;
    const bool is_matrix = stored->shape.size() == 2;
    EXPECT_EQ(stored->dtype, is_matrix ? matrices : dtype_of<typename Module::Scalar>()) << name;
  }
}

TEST(ParameterFile, ComesBackToTheBitInEveryWeightFormat) {
  expect_round_trip<ClassifierOf<float, ReferenceBackend, float>>(DType::F32);
  expect_round_trip<ClassifierOf<double, ReferenceBackend, double>>(DType::F64);
  expect_round_trip<ClassifierOf<float, NativeBackend, float>>(DType::F32);
  expect_round_trip<ClassifierOf<float, NativeBackend, bf16>>(DType::BF16);
  expect_round_trip<ClassifierOf<float, NativeBackend, f16>>(DType::F16);
  expect_round_trip<ClassifierOf<float, NativeBackend, q8>>(DType::F32);
  expect_round_trip<ClassifierOf<float, ReferenceBackend, q4>>(DType::F32);
  expect_round_trip<ClassifierOf<double, ReferenceBackend, q8>>(DType::F32);
  expect_round_trip<ClassifierOf<float, EigenBackend, bf16>>(DType::BF16);
}

TEST(ParameterFile, HoldsAWholeModel) {
  const Folder folder;
  const auto model = support::trained_looking_model<support::Model>(support::tiny_config());
  support::Model other(support::tiny_config());
  save_parameters(model, model.backend(), folder / "model.safetensors");
  load_parameters(other, other.backend(), folder / "model.safetensors");
  other.refresh();
  auto a = model.make_cache(), b = other.make_cache();
  const std::vector<std::int32_t> tokens{3, 1, 4};
  EXPECT_TRUE(identical(support::copy_of(model.forward(tokens, a)), support::copy_of(other.forward(tokens, b))));
}

TEST(ParameterFile, HasMatricesOfAnotherTypeWhereThatIsWanted) {
  const Folder folder;
  const auto module = filled<Classifier>(1);
  for (const auto& [matrices, others] :
       {std::pair(DType::BF16, DType::F32), {DType::F16, DType::F32}, {DType::F64, DType::F64}}) {
    save_parameters(module, reference, folder / "file", {.matrices = matrices});
    TensorSet tensors;
    read_safetensors(ByteSource::open(folder / "file"), tensors);
    EXPECT_EQ(tensors.find("head.weight")->dtype, matrices);
    EXPECT_EQ(tensors.find("head.bias")->dtype, others);
  }
  auto other = filled<Classifier>(2);
  load_parameters(other, reference, folder / "file");  // F64, from floats
  EXPECT_TRUE(numbers_of(other) == numbers_of(module));
  EXPECT_THROW(save_parameters(module, reference, folder / "file", {.matrices = DType::Q8_0}), ArgumentError);
}

TEST(ParameterFile, StoresTextsAsMetadata) {
  const Folder folder;
  const auto module = filled<Classifier>(1);
  const std::map<std::string, std::string> texts{
      {"labels", "cat\ndog \"\\\x01"}, {"", ""}, {"caf\xC3\xA9", "\xE2\x82\xAC"}};
  save_parameters(module, reference, folder / "file", {.metadata = texts});
  auto found = read_safetensors_metadata(folder / "file");
  EXPECT_EQ(found["format"], "pt");
  found.erase("format");
  EXPECT_EQ(found, texts);
  Classifier other;
  load_parameters(other, reference, folder / "file");
  EXPECT_TRUE(numbers_of(other) == numbers_of(module));

  save_parameters(module, reference, folder / "file", {.metadata = {{"format", "np"}}});
  EXPECT_EQ(read_safetensors_metadata(folder / "file"), (std::map<std::string, std::string>{{"format", "np"}}));
}

TEST(ParameterFile, RefusesTextsThatCouldNotBeReadAgain) {
  const Folder folder;
  const auto module = filled<Classifier>(1);
  const auto save = [&](const std::map<std::string, std::string>& texts) {
    save_parameters(module, reference, folder / "file", {.metadata = texts});
  };
  const std::string half(std::size_t{1} << 19, 'x');
  std::map<std::string, std::string> many;
  for (int i = 0; i < 31; ++i) many["text " + std::to_string(i)] = half;
  save(many);
  EXPECT_EQ(read_safetensors_metadata(folder / "file").size(), 32U);
  const std::string before = read_text(folder / "file");
  many["one more"] = half;                         // 16 MiB, and "pt"
  const std::string control(half.size(), '\x01');  // each of which takes six bytes in the file
  for (const auto& texts : std::vector<std::map<std::string, std::string>>{
           {{"long", half + half}}, {{half + half, "key"}}, {{"escaped", control}}, {{"no UTF-8", "\xFF"}}, many}) {
    EXPECT_THROW(save(texts), ArgumentError) << texts.begin()->first.substr(0, 20);
    EXPECT_TRUE(read_text(folder / "file") == before);
  }
  save({{"long", half + half.substr(100)}});
  EXPECT_EQ(read_safetensors_metadata(folder / "file")["long"].size(), 2 * half.size() - 100);
  EXPECT_EQ(support::contents(folder.path()).size(), 1U) << "temporary files are left";
}

/// The tensors of a file, to be written again otherwise.
struct Tensors {
  std::vector<StoredTensor> announced;
  std::vector<std::vector<float>> numbers;

  explicit Tensors(const Classifier& module) {
    for (const auto& [name, values] : numbers_of(module)) {
      announced.push_back({name, DType::F32, {}});
      numbers.push_back(values);
    }
    for_each_parameter(
        [&](std::string_view name, const auto& parameter) {
          at(name).shape.assign(parameter.shape().begin(), parameter.shape().end());
        },
        module);
  }
  StoredTensor& at(std::string_view name) {
    return *std::find_if(announced.begin(), announced.end(), [&](const auto& tensor) { return tensor.name == name; });
  }
  void add(const std::string& name, std::vector<std::uint64_t> shape, DType dtype = DType::F32) {
    announced.push_back({name, dtype, std::move(shape)});
    numbers.emplace_back(announced.back().size(), 1.0F);
  }
  void erase(const std::string& name) {
    const auto at = std::find_if(announced.begin(), announced.end(), [&](const auto& t) { return t.name == name; });
    numbers.erase(numbers.begin() + (at - announced.begin()));
    announced.erase(at);
  }
  void write(const fs::path& path) const {
    SafetensorsWriter writer(path, announced);
    for (std::size_t i = 0; i < announced.size(); ++i) {
      writer.write(std::span<const float>(numbers[i]), announced[i].dtype);
    }
    writer.commit();
  }
};

struct BadFile {
  std::string name;
  std::function<void(Tensors&)> change;
  std::vector<std::string> words;
};

TEST(ParameterFile, ThatDoesNotFitIsRefusedByNameAndChangesNothing) {
  const auto module = filled<Classifier>(1);
  for (const BadFile& bad : std::vector<BadFile>{{"missing",
                                                  [](Tensors& t) { t.erase("head.bias"); },
                                                  {"head.bias: expected", "shape [5]", "found no tensor"}},
                                                 {"extra",
                                                  [](Tensors& t) { t.add("body.project.bias", {40}); },
                                                  {"body.project.bias", "no parameter of this name"}},
                                                 {"shape",
                                                  [](Tensors& t) {
                                                    t.at("body.project.weight").shape = {33, 40};
                                                  },
                                                  {"body.project.weight", "[40, 33]", "[33, 40]"}},
                                                 {"dimensions",
                                                  [](Tensors& t) {
                                                    t.at("head.bias").shape = {5, 1};
                                                  },
                                                  {"head.bias", "[5]", "[5, 1]"}}}) {
    SCOPED_TRACE(bad.name);
    const Folder folder;
    auto target = filled<Classifier>(2);
    const auto before = numbers_of(target);
    Tensors tensors(module);
    bad.change(tensors);
    tensors.write(folder / "file.safetensors");
    try {
      load_parameters(target, reference, folder / "file.safetensors");
      ADD_FAILURE() << "accepted";
    } catch (const CheckpointError& error) {
      support::expect_words(error.what(), {"file.safetensors"});
      support::expect_words(error.what(), bad.words);
    }
    EXPECT_TRUE(numbers_of(target) == before);
  }
}

TEST(ParameterFile, OfIntegersIsRefused) {
  const Folder folder;
  save_parameters(filled<Classifier>(1), reference, folder / "file");
  std::string text = read_text(folder / "file");
  support::replace(text, R"("head.bias":{"dtype":"F32")", R"("head.bias":{"dtype":"I32")");
  write_text(folder / "file", text);
  auto target = filled<Classifier>(2);
  const auto before = numbers_of(target);
  try {
    load_parameters(target, reference, folder / "file");
    ADD_FAILURE() << "accepted";
  } catch (const CheckpointError& error) {
    support::expect_words(error.what(), {"head.bias", "floating-point", "I32"});
  }
  EXPECT_TRUE(numbers_of(target) == before);
}

TEST(ParameterFile, CutAnywhereIsRefused) {
  const Folder folder;
  save_parameters(filled<Classifier>(1), reference, folder / "file");
  const std::string whole = read_text(folder / "file");
  auto target = filled<Classifier>(2);
  const auto before = numbers_of(target);
  for (std::size_t size = 0; size < whole.size(); size += 97) {
    EXPECT_THROW(load_parameters(target, reference, ByteSource(std::as_bytes(std::span(whole).first(size)), "cut")),
                 FormatError)
        << size;
  }
  EXPECT_THROW(load_parameters(target, reference, folder / "none"), FileError);
  EXPECT_TRUE(numbers_of(target) == before);
}

TEST(ParameterFile, RefusesValuesThatDoNotFitOrClampsThem) {
  using Narrow = ClassifierOf<float, ReferenceBackend, f16>;
  const Folder folder;
  const auto wide = filled<Classifier>(1, 1e5);
  save_parameters(wide, reference, folder / "wide");
  auto target = filled<Narrow>(2);
  const auto before = numbers_of(target);
  try {
    load_parameters(target, reference, folder / "wide");
    ADD_FAILURE() << "accepted";
  } catch (const CheckpointError& error) {
    support::expect_words(error.what(), {"wide: body.project.weight", "F16"});
  }
  EXPECT_TRUE(numbers_of(target) == before);
  std::vector<std::string> notes;
  const auto note = [&](const std::string& text) { notes.push_back(text); };
  load_parameters(target, reference, folder / "wide", {.saturate = true, .on_note = note});
  ASSERT_EQ(notes.size(), 1U);
  support::expect_words(notes[0], {"did not fit F16", "clamped"});
  const auto narrow = numbers_of(target);
  for (const float x : narrow.at("head.weight")) EXPECT_LE(std::abs(x), 65504);

  const std::string old = read_text(folder / "wide");
  EXPECT_THROW(save_parameters(wide, reference, folder / "wide", {.matrices = DType::F16}), CheckpointError);
  EXPECT_TRUE(read_text(folder / "wide") == old);
  save_parameters(wide, reference, folder / "clamped", {.matrices = DType::F16, .saturate = true, .on_note = note});
  EXPECT_EQ(notes.size(), 2U);
  Classifier clamped;
  load_parameters(clamped, reference, folder / "clamped");
  EXPECT_TRUE(numbers_of(clamped).at("head.weight") == narrow.at("head.weight"));
}

TEST(ParameterFile, KeepsTheOldOneWhenASaveFails) {
  const Folder folder;
  const auto module = filled<Classifier>(1), other = filled<Classifier>(2);
  save_parameters(module, reference, folder / "file");
  const auto before = support::contents(folder.path());
  {
    const support::FullDisk full(4096);
    EXPECT_THROW(save_parameters(other, reference, folder / "file"), FileError);
  }
  EXPECT_TRUE(support::contents(folder.path()) == before);
  EXPECT_THROW(save_parameters(other, reference, folder / "none" / "file"), FileError);
  EXPECT_THROW(save_parameters(other, reference, folder / "file", {.progress = [](double part) { return part < 0.5; }}),
               CancelledError);
  EXPECT_TRUE(support::contents(folder.path()) == before);
}

TEST(ParameterFile, ReportsItsProgressAndCanBeCancelled) {
  const Folder folder;
  save_parameters(filled<Classifier>(1), reference, folder / "file");
  auto target = filled<Classifier>(2);
  const auto before = numbers_of(target);
  EXPECT_THROW(load_parameters(target, reference, folder / "file", {.progress = [](double part) { return part < 1; }}),
               CancelledError);
  EXPECT_TRUE(numbers_of(target) == before);
  std::vector<double> told;
  load_parameters(target, reference, folder / "file", {.progress = [&](double x) { return told.push_back(x), true; }});
  EXPECT_EQ(told.size(), names.size());
  EXPECT_TRUE(std::is_sorted(told.begin(), told.end()));
  EXPECT_DOUBLE_EQ(told.back(), 1);
}

TEST(ParameterFile, RefusesModulesThatHoldNothing) {
  const Folder folder;
  Classifier module = filled<Classifier>(1);
  save_parameters(module, reference, folder / "file");
  const std::string before = read_text(folder / "file");
  const Classifier moved = std::move(module);
  EXPECT_THROW(save_parameters(module, reference, folder / "file"), ArgumentError);  // NOLINT: moved from
  EXPECT_THROW(save_parameters(Classifier(), reference, folder / "file"), ArgumentError);
  EXPECT_TRUE(read_text(folder / "file") == before);
}

}  // namespace parameter_file_test
